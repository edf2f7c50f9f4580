"""The training loss. Its options are declared in `sftjob.options`; its arithmetic is in `cross_entropy`."""

from sftjob.options import CELossConfig

__all__ = ["CELossConfig"]
