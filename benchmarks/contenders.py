"""One run of one trainer, in a process of its own: `python -m benchmarks.contenders NAME`, by `benchmarks.turns`.

In: on standard input, once what it needs is imported, a line of JSON: its settings, and the path of its result. Out: a
JSON file with the loss and seconds of every step and the peak memory. All train the same weights on the same packs in
the same order, with the same AdamW and a constant learning rate; the packs are those that our Trainer makes. `gemm`
trains nothing: it is the machine's limit.
"""

import _thread
import contextlib
import importlib
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from sft_trainer.config import AdamWConfig, LRConfig
from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.config import DataloaderConfig
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.packed import PackedBatch
from sft_trainer.train.flops import count_flops
from sft_trainer.train.memory import peak_memory
from sftjob.options import CELossConfig, FSDPConfig, LoRAConfig

Method = Literal["full", "lora", "qlora"]
Recompute = Literal["none", "selective", "full"]

SEED = 42
OPTIMIZER = AdamWConfig(lr=5e-5)
RANK, ALPHA = 16, 32
"""Of LoRA, beside every linear module but the head."""
_CHUNK = CELossConfig().chunk_size


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
    packs: int = 1
    """A step, one after another."""
    liger: bool = False
    """TRL with Liger Kernel's norms, rotary embeddings and activations."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: of the products, with fp32 weights and moments."""
    recompute: Recompute = "none"
    """Of all layers; TRL's is full wherever it is not none."""
    method: Method = "full"

    @property
    def dataloader(self) -> DataloaderConfig:
        dataset = {"name": "benchmark", "anno_path": self.data, "cache_dir": self.cache}
        return DataloaderConfig(dataset_config_list=[{"dataset": dataset}], pack_max_length=self.max_length)

    @property
    def lora(self) -> LoRAConfig | None:
        if self.method == "full":
            return None
        return LoRAConfig(rank=RANK, alpha=ALPHA, quantize="nf4" if self.method == "qlora" else "none")


@dataclass(frozen=True)
class Measured:
    losses: list[float]
    """Of each step; of `gemm` none."""
    seconds: list[float]
    """Of each step: forward, backward, clipping and the optimiser."""
    tokens: list[int]
    """Of each step."""
    trained_tokens: list[int]
    flops: list[int]
    """That each step needs; of `gemm`, what it computes of them: all but attention."""
    peak_bytes: int
    """Of tensors on a GPU, else of the whole process."""


def ours(settings: Settings) -> tuple[list[float], list[float]]:
    """The Trainer as users call it, until it has told of the last step. A step's seconds contain the making of its
    batch; the save at the end of a run, tens of gigabytes for a model of billions, is left out for all."""
    from sft_trainer.model import get_model_config_from_hf
    from sft_trainer.train import Trainer

    with tempfile.TemporaryDirectory(dir=settings.cache) as work_dir:
        trainer = Trainer(
            model_cfg=get_model_config_from_hf(settings.model),
            load_from=settings.model,
            tokenizer_path=settings.model,
            dataloader_cfg=settings.dataloader,
            optim_cfg=OPTIMIZER,
            lr_cfg=LRConfig(lr_type="constant", warmup_ratio=0),
            global_batch_size=settings.packs,
            total_step=1_000_000,
            precision=settings.precision,
            fsdp_cfg=FSDPConfig(
                recompute_ratio=1.0 if settings.recompute == "full" else 0.0,
                recompute_selectively=settings.recompute == "selective",
            ),
            lora_cfg=settings.lora,
            work_dir=work_dir,
            seed=SEED,
        )
        rows: list[dict[str, Any]] = []
        # Ctrl-C, and it would save.
        signal.signal(signal.SIGUSR1, signal.default_int_handler)
        threading.Thread(target=_interrupt, args=(Path(work_dir), settings.steps, rows), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit()
    return [row["loss"] for row in rows], [row["step_seconds"] for row in rows]


def _interrupt(work_dir: Path, steps: int, rows: list[dict[str, Any]]) -> None:
    """The main thread, once the metrics have that many rows: those."""
    lines: list[str] = []
    while len(lines) < steps:
        time.sleep(0.05)
        for metrics in work_dir.rglob("metrics.jsonl"):
            # Of the last one only a part may be there.
            lines = metrics.read_text().split("\n")[:-1]
    rows += [json.loads(line) for line in lines[:steps]]
    _thread.interrupt_main(signal.SIGUSR1)


def plain(settings: Settings) -> tuple[list[float], list[float]]:
    """transformers in a loop: positions that begin anew isolate the documents, and all logits go into one loss."""
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

    With LoRA the base is in the precision of the products, as its users load it, and for QLoRA packed as ours. Batches
    and logs are made between the steps, outside of the seconds that count here.
    """
    return _sft_trainer(settings, _trl_model(settings), adapter=_trl_adapter(settings))


def unsloth(settings: Settings) -> tuple[list[float], list[float]]:
    """Its model in the same SFTTrainer, which it has patched (`unsloth_first`). Full fine-tuning keeps fp32 weights."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        settings.model,
        max_seq_length=settings.max_length,
        dtype=torch.bfloat16,
        load_in_4bit=settings.method == "qlora",
        full_finetuning=settings.lora is None,
        float32_mixed_precision=settings.lora is None,
    )
    recompute = "unsloth" if settings.recompute != "none" else False
    if settings.lora:
        model = FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing=recompute,
            random_state=SEED,
        )
    return _sft_trainer(settings, model, adapter=None)


def _sft_trainer(settings: Settings, model: PreTrainedModel, *, adapter: Any) -> tuple[list[float], list[float]]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    began: list[float] = []
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            began.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # as its log of each step does next
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
            gradient_accumulation_steps=settings.packs,
            max_steps=settings.steps,
            learning_rate=OPTIMIZER.lr,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            weight_decay=OPTIMIZER.weight_decay,
            adam_beta1=OPTIMIZER.betas[0],
            adam_beta2=OPTIMIZER.betas[1],
            adam_epsilon=OPTIMIZER.eps,
            max_grad_norm=OPTIMIZER.max_grad_norm,
            bf16=settings.precision == "bf16",
            gradient_checkpointing=settings.recompute != "none",
            use_liger_kernel=settings.liger,
            use_cpu=not torch.cuda.is_available(),
            seed=SEED,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            peft_config=adapter,
            args=config,
            train_dataset=Dataset.from_list([_trl_row(batch) for batch in _batches(settings)]),
            processing_class=AutoTokenizer.from_pretrained(settings.model),
            callbacks=[Clock()],
        )
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], seconds


def gemm(settings: Settings) -> tuple[list[float], list[float]]:
    """The matrix products that no trainer of this model can leave out, in fp32, and nothing else of a step.

    Each weight has memory of its own, as in a model; what a product gives is written over.
    """
    model = _on_meta(settings)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    weights = [torch.randn(module.weight.shape) for module in linear]
    head_weight = torch.randn(head.weight.shape)
    seconds = []
    for batch in _batches(settings):
        tokens, trained = batch.input_ids.shape[1], len(batch.trained_rows)
        chunks = [min(_CHUNK, trained - start) for start in range(0, trained, _CHUNK)]
        products = [(tokens, weight) for weight in weights] + [(rows, head_weight) for rows in chunks]
        shapes = {(rows, *weight.shape) for rows, weight in products}
        buffers = {
            (rows, outs, ins): [torch.randn(s) for s in ((rows, ins), (rows, outs), (rows, ins), (outs, ins))]
            for rows, outs, ins in shapes
        }
        began = time.perf_counter()
        for rows, weight in products:
            input_, output, input_gradient, gradient = buffers[(rows, *weight.shape)]
            torch.mm(input_, weight.T, out=output)
            torch.mm(output, weight, out=input_gradient)
            torch.mm(output.T, input_, out=gradient)
        seconds.append(time.perf_counter() - began)
    return [], seconds


def _trl_model(settings: Settings) -> PreTrainedModel:
    dtype = torch.bfloat16 if settings.precision == "bf16" and settings.lora else torch.float32
    packed = None
    if settings.method == "qlora":
        packed = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        settings.model,
        dtype=dtype,
        quantization_config=packed,
        device_map={"": 0} if torch.cuda.is_available() else None,
    )
    return model


def _trl_adapter(settings: Settings) -> Any:
    if settings.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")


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
    return BatchStream(data, seed=SEED, global_batch_size=settings.packs, world_size=1, rank=0)


def _on_meta(settings: Settings) -> PreTrainedModel:
    # Here, where nothing is measured any more: what we import is none of the others' memory.
    from sft_trainer.model import get_model_config_from_hf
    from sft_trainer.model.build import model_on_meta

    return model_on_meta(
        get_model_config_from_hf(settings.model),
        load_from=settings.model,
        precision=settings.precision,
        lora_cfg=settings.lora,
    )


def _batches(settings: Settings) -> Iterator[PackedBatch]:
    stream = _stream(settings)
    for step in range(1, settings.steps + 1):
        yield from stream.micro_batches(step)


CONTENDERS: dict[str, Callable[[Settings], tuple[list[float], list[float]]]] = {
    "ours": ours,
    "plain": plain,
    "trl": trl,
    "unsloth": unsloth,
    "gemm": gemm,
}


_IMPORTED_BEFORE = {"ours": ("sft_trainer.train", "sft_trainer.model"), "trl": ("trl", "peft")}
"""Its settings are awaited."""


def main(name: str) -> None:
    for module in _IMPORTED_BEFORE.get(name, ()):
        importlib.import_module(module)
    order = json.loads(sys.stdin.readline())
    settings = Settings(**order["settings"])
    losses, seconds = CONTENDERS[name](settings)
    stream, steps = _stream(settings), range(1, settings.steps + 1)
    count = count_flops(_on_meta(settings))
    assert count is not None, "the benchmark's models are of known forms"
    if name == "gemm":
        count = replace(count, per_pair=Counter())
    measured = Measured(
        losses=losses,
        seconds=seconds,
        tokens=[stream.tokens(step) for step in steps],
        trained_tokens=[stream.trained_tokens(step) for step in steps],
        flops=[
            count.of_documents(stream.document_lengths(step), trained_tokens=stream.trained_tokens(step))
            for step in steps
        ],
        peak_bytes=peak_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    )
    Path(order["result"]).write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main(sys.argv[1])
