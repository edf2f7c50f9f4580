"""A real Kubernetes on this machine, for development and tests: `python -m cluster --help`, docs/cluster.md."""
