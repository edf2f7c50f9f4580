"""The judge of a trained model: transformers alone, on chats that training never saw."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def assistant_loss(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Mean over assistant tokens, each row alone: the answer is what follows the generation prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows:
        *prompt, answer = row["messages"]
        assert answer["role"] == "assistant"
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        whole = start + answer["content"] + tokenizer.eos_token
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
        first = len(tokenizer(start, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logits = model(ids).logits[0, first - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, first:], reduction="sum").item()
        count += ids.shape[1] - first
    return total / count
