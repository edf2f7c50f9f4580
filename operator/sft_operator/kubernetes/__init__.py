"""The backend of a cluster: an attempt is a PyTorchJob, the object is an SFTJob of the API server.

What is seen and what is built are pure functions on the API server's JSON (`observe`, `pod_end`, `trouble`,
`pytorch_job`, `story`); calls are in `api`; `watch` alone knows kopf. `run` puts them together.
"""
