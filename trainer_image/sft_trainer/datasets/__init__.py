"""Training data: from JSONL files to packed batches.

One file per step: read -> formats -> render -> mask -> tokens -> tokenize (cached) -> pack -> prepare -> batch. Users
meet `OpenaiTokenizeFunctionConfig` here and the rest of the options in `datasets.config`; the Trainer calls
`prepare.prepare_data` and `batch.BatchStream`.
"""

from sft_trainer.datasets.config import OpenaiTokenizeFunctionConfig

__all__ = ["OpenaiTokenizeFunctionConfig"]
