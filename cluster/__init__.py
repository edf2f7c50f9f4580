"""A real Kubernetes on this machine, for development and tests: so far what it needs, and its programs."""
