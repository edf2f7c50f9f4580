"""A run of the training loop in this process: a Qwen3 of two narrow layers from scratch, chats of a few letters."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sft_trainer.datasets.config import (
    DataloaderConfig,
    DatasetConfig,
    EvaluationConfig,
    OpenaiTokenizeFunctionConfig,
)
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.model import Qwen3Dense0P6BConfig
from sft_trainer.run import Export, RunOptions, RunPlace, RunState, Tracking
from sft_trainer.stop import StopSignal
from sft_trainer.storage.fence import Fence
from sft_trainer.train.loop import train
from sft_trainer.train.world import World
from sftjob import names
from sftjob.manifest import CheckpointManifest
from sftjob.options import AdamWConfig, CELossConfig, FSDPConfig, LoRAConfig, LRConfig, Tracker
from tests.sft_trainer.datasets.chats import LLAMA3_TOKENS, pair, trl_template, write_chats

ALONE = World(rank=0, size=1, device=torch.device("cpu"), mesh=None)
VOCAB_SIZE = 264

TRAINED = [pair("ab" * (n % 5 + 1), chr(97 + n % 7) * (n % 9 + 1)) for n in range(24)]
EVALUATED = [pair("q" * (n % 3 + 1), chr(104 + n) * (2 * n + 1)) for n in range(7)]


def meeting_place() -> dist.TCPStore:
    """As torchrun has one open for its ranks, on a port that nobody else can take."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def become_rank(rank: int, *, port: int) -> None:
    """Of two, that meet at this port."""
    address = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in address.items()}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    torch.set_num_threads(1)


def save_tokenizer(folder: Path) -> Path:
    """Llama 3's template over single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*LLAMA3_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        additional_special_tokens=LLAMA3_TOKENS,
    )
    tokenizer.chat_template = trl_template("llama3.jinja")
    tokenizer.save_pretrained(folder)
    return folder


def save_base(folder: Path) -> Path:
    """A model of the run's own shape, to adapt."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=40960, rope_theta=1e6, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass
class SmallRun:
    folder: Path
    evaluation: dict[str, Any] | None = None
    lr: float = 3e-3
    moments: str = "fp32"
    precision: str = "fp32"
    torch_compile: bool = False
    total_steps: int = 6
    total_epoch: int | None = None
    """In place of them."""
    interval: int | None = 1
    keep_last: int = 100
    save_mode: str = "sync"
    grace_seconds: float = 1000
    packing: str = "soft"
    pack_tokens: int = 96
    batch: int = 2
    threshold: float | None = None
    chat_template: str | None = None
    load_from: Path | None = None
    lora: LoRAConfig | None = None
    scratch: Path | None = None
    shortages: int = 0
    report_to: tuple[Tracker, ...] = ()
    uri: str | None = None
    """Of a storage in a bucket, of which `storage` is the copy."""
    attempts: int = field(default=0)

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def exported(self) -> Path:
        return self.folder / "model"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    def go(self, *, world: World = ALONE) -> RunState:
        """One more attempt, to its end or to what it raises."""
        self.attempts += 1
        folder = names.attempt_folder(self.storage, self.attempts)
        folder.mkdir(parents=True, exist_ok=True)
        options = self.options()
        data = prepare_data(
            options.dataloader_cfg,
            tokenizer_path=options.tokenizer_path,
            cache_dir=self.folder / "cache",
            seed=options.seed,
        )
        place = RunPlace(
            fence=Fence(self.storage, "tests", self.attempts, self.uri),
            resume=True,
            exports=[Export(self.exported, "hf"), *([Export(self.adapter, "adapter")] if self.lora else [])],
            checkpoint_interval=self.interval,
            saves_by_clock=True,
            keep_last=self.keep_last,
            save_mode=self.save_mode,
            shortages=self.shortages,
            grace_seconds=self.grace_seconds,
            scratch=self.scratch,
            tracking=Tracking(self.report_to, run_id="0123456789abcdef", run_name="small"),
        )
        self.state = RunState()
        train(options, place, data, world=world, stop=StopSignal(), state=self.state)
        return self.state

    def trainer_arguments(self) -> dict[str, Any]:
        """What a `Trainer` has to be told, with the run's optimiser and schedule."""
        options = self.options()
        fields = ("model_cfg", "tokenizer_path", "dataloader_cfg", "optim_cfg", "lr_cfg")
        return {name: getattr(options, name) for name in fields}

    def options(self) -> RunOptions:
        self.folder.mkdir(exist_ok=True)
        tokenizer = self.folder / "tokenizer"
        if not tokenizer.exists():
            save_tokenizer(tokenizer)
            write_chats(self.folder / "trained.jsonl", TRAINED)
            write_chats(self.folder / "evaluated.jsonl", EVALUATED)
        evaluation = self.evaluation
        if evaluation is not None and "fraction" not in evaluation:
            entry = {"dataset": DatasetConfig(name="held", anno_path=self.folder / "evaluated.jsonl")}
            evaluation = evaluation | {"dataset_config_list": [entry]}
        return RunOptions(
            model_cfg=Qwen3Dense0P6BConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
            ),
            load_from=str(self.load_from) if self.load_from else None,
            tokenizer_path=str(tokenizer),
            dataloader_cfg=DataloaderConfig(
                dataset_config_list=[
                    {
                        "dataset": DatasetConfig(name="d", anno_path=self.folder / "trained.jsonl"),
                        "tokenize_fn": OpenaiTokenizeFunctionConfig(chat_template=self.chat_template),
                    }
                ],
                pack_max_length=self.pack_tokens,
                pack_level=self.packing,
                evaluation=evaluation and EvaluationConfig(**evaluation),
            ),
            optim_cfg=AdamWConfig(lr=self.lr, moments=self.moments, skip_grad_norm_threshold=self.threshold),
            lr_cfg=LRConfig(lr_type="constant", warmup_ratio=0),
            loss_cfg=CELossConfig(),
            fsdp_cfg=FSDPConfig(torch_compile=self.torch_compile),
            global_batch_size=self.batch,
            total_epoch=self.total_epoch,
            total_step=None if self.total_epoch else self.total_steps,
            precision=self.precision,
            seed=5,
            lora_cfg=self.lora,
        )

    def lines(self, *, attempt: int | None = None) -> list[dict[str, Any]]:
        path = names.attempt_folder(self.storage, attempt or self.attempts) / names.METRICS
        return [json.loads(line) for line in path.read_text().splitlines()]

    def evaluations(self, *, attempt: int | None = None) -> dict[int, float]:
        return {line["step"]: line["eval_loss"] for line in self.lines(attempt=attempt) if "eval_loss" in line}

    def checkpoints(self) -> list[int]:
        """Published ones."""
        numbers = [path.name.removeprefix("step-") for path in self.storage.glob("step-*")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def manifest(self, step: int) -> CheckpointManifest:
        return CheckpointManifest.from_json((self.storage / f"step-{step}" / names.MANIFEST).read_text())

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        """Weights and moments of a checkpoint, by torch's own reader."""
        file = self.folder / f"{step}.pt"
        dcp_to_torch_save(self.storage / f"step-{step}", file)
        return dict(_flat(torch.load(file), ""))

    def another(self, name: str, **changes: Any) -> "SmallRun":
        return replace(self, folder=self.folder.with_name(name), attempts=0, **changes)


def _flat(tree: dict[str, Any], prefix: str):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
