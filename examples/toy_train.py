"""The script of XTuner V1's tutorial on our Trainer: only the root of the imports differs.

    torchrun --nproc_per_node=8 examples/toy_train.py --tokenizer Qwen3-8B --load-from Qwen3-8B --data openai_sft.jsonl

Without `--load-from` it trains from scratch. `--tiny` and `--default-length` let a laptop and the tests run it.
"""

import argparse

from sft_trainer.config import AdamWConfig, FSDPConfig, LRConfig
from sft_trainer.datasets import OpenaiTokenizeFunctionConfig
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.loss import CELossConfig
from sft_trainer.model import Qwen3Dense8BConfig
from sft_trainer.train import Trainer

parser = argparse.ArgumentParser(description="Trains Qwen3-8B on a JSONL file of chats.")
parser.add_argument("--tokenizer", required=True, help="a folder with the tokenizer")
parser.add_argument("--load-from", help="a folder with the weights; without it, training begins from scratch")
parser.add_argument("--data", required=True, help="a JSONL file of chats")
parser.add_argument("--cache-dir", default="cache", help="where the tokenised data is kept for the next start")
parser.add_argument("--work-dir", default="work")
parser.add_argument("--tiny", action="store_true", help="a model of a few million parameters, and short packs")
parser.add_argument("--default-length", action="store_true", help="leave batch size and epochs to the Trainer")
arguments = parser.parse_args()

overrides = {}
max_length = 4096
if arguments.tiny:
    overrides = {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    max_length = 256
length = {} if arguments.default_length else {"global_batch_size": 8, "total_epoch": 1}

model_cfg = Qwen3Dense8BConfig(**overrides)
dataset_cfg = [
    {
        "dataset": DatasetConfig(name="d", anno_path=arguments.data, cache_dir=arguments.cache_dir),
        "tokenize_fn": OpenaiTokenizeFunctionConfig(chat_template="qwen3", max_length=max_length),
    }
]
dataloader_cfg = DataloaderConfig(dataset_config_list=dataset_cfg, pack_max_length=max_length, num_workers=4)
optim_cfg = AdamWConfig(lr=6e-05)
lr_cfg = LRConfig(lr_type="cosine", lr_min=1e-6)
trainer = Trainer(
    model_cfg=model_cfg,
    tokenizer_path=arguments.tokenizer,
    load_from=arguments.load_from,
    optim_cfg=optim_cfg,
    dataloader_cfg=dataloader_cfg,
    lr_cfg=lr_cfg,
    fsdp_cfg=FSDPConfig(),
    loss_cfg=CELossConfig(mode="chunk"),
    work_dir=arguments.work_dir,
    **length,
)
trainer.fit()
