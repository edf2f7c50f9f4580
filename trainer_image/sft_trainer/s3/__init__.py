"""Buckets: what is read from one, what a job publishes in one, and checkpoints that are kept in one."""
