"""One run of one trainer, in a process of its own: `python -m benchmarks.contenders NAME SETTINGS RESULT`.

In: settings as a JSON file. Out: a JSON file with the loss and seconds of every step and the peak memory. Called by
`benchmarks.trainer_vs_trl`. All train the same weights on the same packs in the same order, with the same AdamW and a
constant learning rate; the packs are those that our Trainer makes.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sft_trainer.config import AdamWConfig, LRConfig
from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.config import DataloaderConfig
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.packed import PackedBatch

SEED = 42
OPTIMIZER = AdamWConfig(lr=5e-5)


@dataclass(frozen=True)
class Settings:
    model: str
    """A Hugging Face folder."""
    data: str
    """A JSONL file of chats."""
    cache: str
    """Folder for the tokens, so that each run finds them made."""
    max_length: int
    """Tokens a pack holds."""
    steps: int
    """Of one pack each."""

    @property
    def dataloader(self) -> DataloaderConfig:
        dataset = {"name": "benchmark", "anno_path": self.data, "cache_dir": self.cache}
        return DataloaderConfig(dataset_config_list=[{"dataset": dataset}], pack_max_length=self.max_length)


@dataclass(frozen=True)
class Measured:
    losses: list[float]
    seconds: list[float]
    """Of each step: forward, backward, clipping and the optimiser."""
    tokens: list[int]
    """Of each step."""
    trained_tokens: list[int]
    peak_bytes: int


def ours(settings: Settings) -> tuple[list[float], list[float]]:
    """The Trainer as users call it. A step's seconds contain the making of its batch."""
    from sft_trainer.model import get_model_config_from_hf
    from sft_trainer.train import Trainer

    with tempfile.TemporaryDirectory(dir=settings.cache) as work_dir:
        folder = Trainer(
            model_cfg=get_model_config_from_hf(settings.model),
            load_from=settings.model,
            tokenizer_path=settings.model,
            dataloader_cfg=settings.dataloader,
            optim_cfg=OPTIMIZER,
            lr_cfg=LRConfig(lr_type="constant", warmup_ratio=0),
            global_batch_size=1,
            total_step=settings.steps,
            precision="fp32",
            work_dir=work_dir,
            seed=SEED,
        ).fit()
        metrics = next(folder.parent.rglob("metrics.jsonl"))
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row["loss"] for row in rows], [row["step_seconds"] for row in rows]


def plain(settings: Settings) -> tuple[list[float], list[float]]:
    """transformers in a loop: positions that begin anew isolate the documents, and all logits go into one loss."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": OPTIMIZER.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.lr,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
        fused=True,
    )
    model.train()
    losses, seconds = [], []
    for batch in _batches(settings):
        began = time.perf_counter()
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0].float(), batch.labels[0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    return losses, seconds


def trl(settings: Settings) -> tuple[list[float], list[float]]:
    """SFTTrainer in its packed setting (packing, bfd), given packs that are made already: its own would be others.

    Batches and logs are made between the steps, outside of the seconds that count here.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    began: list[float] = []
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            began.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - began[-1])

    with tempfile.TemporaryDirectory(dir=settings.cache) as output_dir:
        config = SFTConfig(
            output_dir=output_dir,
            max_length=settings.max_length,
            packing=True,
            packing_strategy="bfd",
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            max_steps=settings.steps,
            learning_rate=OPTIMIZER.lr,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            weight_decay=OPTIMIZER.weight_decay,
            adam_beta1=OPTIMIZER.betas[0],
            adam_beta2=OPTIMIZER.betas[1],
            adam_epsilon=OPTIMIZER.eps,
            max_grad_norm=OPTIMIZER.max_grad_norm,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            seed=SEED,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list([_trl_row(batch) for batch in _batches(settings)]),
            processing_class=AutoTokenizer.from_pretrained(settings.model),
            callbacks=[Clock()],
        )
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], seconds


def _trl_row(batch: PackedBatch) -> dict[str, list[int]]:
    """TRL's labels stand at the token itself, ours at the one before."""
    shifted = batch.labels[0].roll(1)
    shifted[batch.position_ids[0] == 0] = -100
    return {
        "input_ids": batch.input_ids[0].tolist(),
        "labels": shifted.tolist(),
        "seq_lengths": batch.cu_seqlens.diff().tolist(),
    }


def _stream(settings: Settings) -> BatchStream:
    data = prepare_data(settings.dataloader, tokenizer_path=settings.model, cache_dir=Path(settings.cache), seed=SEED)
    return BatchStream(data, seed=SEED, global_batch_size=1, world_size=1, rank=0)


def _batches(settings: Settings) -> Iterator[PackedBatch]:
    stream = _stream(settings)
    for step in range(1, settings.steps + 1):
        yield from stream.micro_batches(step)


CONTENDERS: dict[str, Callable[[Settings], tuple[list[float], list[float]]]] = {
    "ours": ours,
    "plain": plain,
    "trl": trl,
}


def main(name: str, settings_file: Path, result_file: Path) -> None:
    settings = Settings(**json.loads(settings_file.read_text()))
    losses, seconds = CONTENDERS[name](settings)
    stream, steps = _stream(settings), range(1, settings.steps + 1)
    measured = Measured(
        losses=losses,
        seconds=seconds,
        tokens=[stream.tokens(step) for step in steps],
        trained_tokens=[stream.trained_tokens(step) for step in steps],
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    result_file.write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
