"""A Hugging Face hub: its commits, its files."""
