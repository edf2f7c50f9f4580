"""Chats, and TRL's copies of models' chat templates."""

import json
from pathlib import Path

import trl

CHATML_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def trl_template(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / name).read_text(encoding="utf-8")


def write_chats(path: Path, chats: list[object]) -> Path:
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    return path


def pair(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
