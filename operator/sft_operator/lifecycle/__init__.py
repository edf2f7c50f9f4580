"""A job's life, pure and the same in a cluster and on a laptop: what was seen in, what to do out.

Imports the contract and the standard library only. `reconcile` is called by a work queue in a cluster and by the
loop of `sft run`.
"""
