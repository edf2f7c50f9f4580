"""Training data: from JSONL files to packed batches.

One file per step: read -> formats -> render -> mask -> tokens -> tokenize (cached) -> pack -> prepare -> batch. Users
meet the tokenize functions here and the rest of the options in `datasets.config`; the Trainer calls
`prepare.prepare_data` and `batch.BatchStream`.
"""

from sft_trainer.datasets.config import OpenaiTokenizeFunctionConfig, PretrainTokenizeFunctionConfig
from sft_trainer.datasets.own import CachableTokenizeFunction

__all__ = ["CachableTokenizeFunction", "OpenaiTokenizeFunctionConfig", "PretrainTokenizeFunctionConfig"]
