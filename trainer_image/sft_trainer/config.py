"""Options of the Trainer, as in the custom resource; declared in `sftjob.options`."""

from sftjob.options import AdamWConfig, FSDPConfig, LoRAConfig, LRConfig

__all__ = ["AdamWConfig", "FSDPConfig", "LRConfig", "LoRAConfig"]
