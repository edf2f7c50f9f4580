"""The job of `local_run.job` as a script of a user's own: nothing of checkpoints, folders or launchers is in it."""

import sys

from sft_trainer.config import AdamWConfig, LRConfig
from sft_trainer.datasets import OpenaiTokenizeFunctionConfig
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.model import Qwen3Dense0P6BConfig
from sft_trainer.train import Trainer

tokenizer, data = sys.argv[1:]
dataset = {
    "dataset": DatasetConfig(name="chats", anno_path=data),
    "tokenize_fn": OpenaiTokenizeFunctionConfig(max_length=256),
}
model = Trainer(
    model_cfg=Qwen3Dense0P6BConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
    tokenizer_path=tokenizer,
    dataloader_cfg=DataloaderConfig(dataset_config_list=[dataset], pack_max_length=256),
    optim_cfg=AdamWConfig(lr=1e-3),
    lr_cfg=LRConfig(),
    total_step=12,
    global_batch_size=4,
    work_dir="nowhere",
).fit()
# In one piece: two ranks write to one stream.
print(f"the model is whole: {sorted(path.name for path in model.iterdir())}")
