"""A job's storage folder: who may write in it, what in it counts as whole. No torch: the launcher imports it."""
