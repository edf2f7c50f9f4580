"""The contract of sftjob: what a job is, and the formats its parts exchange.

Imports pydantic and the standard library only, and no other room: operator, trainer and command line all import
it, so a field, a name or a file format is declared here once.
"""

__version__ = "0.1.0"
