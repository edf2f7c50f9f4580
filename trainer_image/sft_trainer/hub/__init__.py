"""Models and data from a Hugging Face hub: looked up, downloaded into the job's storage, found there by the ranks."""
