"""A script as users have it: transformers' `Trainer` on a tiny Llama, told nothing of us. Prints what it logged."""

import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) + index) % 32
        return {"input_ids": tokens, "labels": tokens}


model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
)
arguments = TrainingArguments(
    sys.argv[1],
    max_steps=20,
    learning_rate=1e-2,
    per_device_train_batch_size=2,
    logging_steps=1,
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=Rows())
trainer.train()
print("LOGGED", json.dumps(trainer.state.log_history))
