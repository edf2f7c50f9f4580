"""The backend without a cluster: an attempt is one launcher process a node, the object is a file.

Called by `sft run`. Everything that must outlive it lies in the work folder, so a restarted `sft run` goes on with
the attempt that it finds.
"""
