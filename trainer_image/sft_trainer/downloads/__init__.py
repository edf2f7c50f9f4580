"""Models and data from a hub or a bucket: looked up, downloaded into the job's storage, found there by the ranks."""
