"""The training loop and what it rests on; `Trainer` is its Python API."""

from sft_trainer.train.trainer import Trainer

__all__ = ["Trainer"]
