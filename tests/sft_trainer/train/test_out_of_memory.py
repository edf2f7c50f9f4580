"""Memory that is too small for a micro-batch: smaller ones follow by themselves, and the run ends as if nothing was.

The memory is torch's own to refuse: a hook asks for more than the address space has, where a real run would.
"""

import itertools
import json
import logging
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from small_run import SmallRun, become_rank, meeting_place
from torch.distributed import DistBackendError
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from sft_trainer.run import RunState
from sft_trainer.train import Trainer, loop, trainer
from sft_trainer.train.last_words import report_of
from sft_trainer.train.load import load_failure
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.memory import MemoryEstimate
from sftjob.options import LoRAConfig

Shrink = Callable[..., None]


@pytest.fixture
def memory() -> Iterator[Shrink]:
    """Micro-batches of more than so many tokens, but for the first few of them, don't get what they ask for."""
    handles = []

    def enough() -> None:
        while handles:
            handles.pop().remove()

    def shrink(*, tokens: float, after: int = 0, in_backward: bool = False) -> None:
        large = itertools.count()

        def ask(module: torch.nn.Module, arguments: tuple, output: torch.Tensor | None = None) -> None:
            if not isinstance(module, torch.nn.Embedding) or not torch.is_grad_enabled():
                return
            if arguments[0].numel() <= tokens or next(large) < after:
                return
            if output is None:
                torch.empty(1 << 50)
            else:  # the embedding comes last in the backward: by then the other weights have their gradients
                output.register_hook(lambda _: torch.empty(1 << 50))

        enough()
        register = register_module_forward_hook if in_backward else register_module_forward_pre_hook
        handles.append(register(ask))

    yield shrink
    enough()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    run = SmallRun(tmp_path_factory.mktemp("undisturbed") / "run")
    run.go()
    return run


def figures(run: SmallRun) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in run.lines()]


def fed(run: SmallRun) -> list[list[int]]:
    """The samples of each step, by the ledger."""
    _, *lines = names.ledger(run.storage, 1, 0).read_text().splitlines()
    packs = [json.loads(line)["packs"] for line in lines]
    return [sorted(sample for pack in step for sample in pack["samples"]) for step in packs]


@pytest.mark.parametrize(
    "shortage",
    [{}, {"in_backward": True}, {"after": 1}, {"after": 1, "in_backward": True}],
    ids=["at once", "in the backward", "in the second pack", "in the backward of the second pack"],
)
def test_a_run_for_which_memory_is_too_small_halves_its_micro_batches_and_trains_the_same(
    tmp_path: Path, undisturbed: SmallRun, memory: Shrink, caplog: pytest.LogCaptureFixture, shortage: dict
) -> None:
    run = SmallRun(tmp_path / "run")
    memory(tokens=60, **shortage)
    with caplog.at_level(logging.INFO):
        run.go()
    samples = [line["samples"] for line in undisturbed.lines()]
    assert [line["samples"] for line in run.lines()] == samples
    assert fed(run) == [sorted(step) for step in samples]
    ours, theirs = figures(run), figures(undisturbed)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    # A tenth of the first gradient.
    gradients, expected = run.tensors(1), undisturbed.tensors(1)
    for name in (name for name in expected if name.endswith(".exp_avg")):
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-8, msg=name)

    assert [line["micro_batches"] for line in undisturbed.lines()] == [2] * 6
    # Packs have two or three documents, all of them longer than a half of the half.
    assert [line["micro_batches"] for line in run.lines()] == [len(step) for step in samples]
    [told] = [record.message for record in caplog.records if "memory ran out" in record.message]
    assert re.fullmatch(
        r"step [12]: memory ran out in a micro-batch of [6-9]\d tokens; from here on packs are trained in parts of at "
        r"most 4\d tokens, with the same global batch and loss",
        told,
    )


def test_a_step_that_begins_anew_draws_what_it_would_have_drawn_and_adds_nothing_to_what_was_there(
    tmp_path: Path, undisturbed: SmallRun, memory: Shrink
) -> None:
    """With dropout: to the bit what a run does whose micro-batches were halved from the start."""
    lora = LoRAConfig(rank=4, dropout=0.5)
    halved = SmallRun(tmp_path / "halved", load_from=undisturbed.exported, lora=lora, shortages=1)
    halved.go()
    run = halved.another("run", shortages=0)
    memory(tokens=60, after=1)
    run.go()
    assert figures(run) == figures(halved)
    assert halved.manifest(6).halvings == 0
    assert run.manifest(6).halvings == 1


def test_what_was_halved_stays_halved_after_a_resume_which_ends_bit_equal(
    tmp_path: Path, memory: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SmallRun(tmp_path / "whole")
    memory(tokens=60, after=4)
    whole.go()
    assert [line["micro_batches"] == 2 for line in whole.lines()] == [True, True, False, False, False, False]

    run = whole.another("killed")
    memory(tokens=60, after=4)
    clip, steps = loop.clip_gradients, itertools.count(1)

    def clip_and_die(*arguments, **options) -> torch.Tensor:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return clip(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "clip_gradients", clip_and_die)
        with pytest.raises(KeyboardInterrupt):
            run.go()
    memory(tokens=1000)
    run.go()
    assert figures(run) == figures(whole)[4:]
    assert [line["micro_batches"] for line in run.lines()] == [len(line["samples"]) for line in run.lines()]
    for name, tensor in whole.tensors(6).items():
        assert torch.equal(run.tensors(6)[name], tensor), name


def test_a_document_that_is_too_large_alone_ends_the_run_with_what_to_change(tmp_path: Path, memory: Shrink) -> None:
    memory(tokens=10)
    run = SmallRun(tmp_path / "run")
    with pytest.raises(JobFailure) as caught:
        run.go()
    assert caught.value.reason is Reason.OUT_OF_MEMORY
    assert re.fullmatch(
        r"memory ran out in a micro-batch of \d\d tokens, one document; nothing is left to halve: set "
        r"spec\.training\.fsdp\.recomputeSelectively, lower spec\.data\.packing\.maxLength, raise "
        r"spec\.training\.fsdp\.recomputeRatio, train with spec\.training\.lora, or use more ranks "
        r"\(.*can't allocate memory.*\)",
        caught.value.message,
    )
    assert run.checkpoints() == []


def test_an_evaluation_takes_the_parts_that_training_takes(tmp_path: Path) -> None:
    whole = SmallRun(tmp_path / "whole", evaluation={"every_steps": 2}, total_steps=2)
    whole.go()
    run = whole.another("halved", shortages=1)
    longest = 0

    def measure(module: torch.nn.Module, arguments: tuple) -> None:
        nonlocal longest
        if isinstance(module, torch.nn.Embedding) and not module.training:
            longest = max(longest, arguments[0].numel())

    handle = register_module_forward_pre_hook(measure)
    run.go()
    handle.remove()
    assert run.evaluations() == pytest.approx(whole.evaluations(), rel=1e-5)
    assert 0 < longest <= 48


def test_any_other_error_in_a_step_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a kernel of its own")

    handle = register_module_forward_pre_hook(
        lambda module, _: fail() if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled() else None
    )
    try:
        with pytest.raises(RuntimeError, match="a kernel of its own"):
            SmallRun(tmp_path / "run").go()
    finally:
        handle.remove()


def test_memory_that_runs_out_elsewhere_is_told_as_such() -> None:
    for error, reason in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Reason.GPU_OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: out of memory"), Reason.GPU_OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), Reason.GPU_OUT_OF_MEMORY),
        (DistBackendError("NCCL error ...: Cuda failure 2 'out of memory'"), Reason.GPU_OUT_OF_MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            Reason.OUT_OF_MEMORY,
        ),
    ):
        report = report_of(error, stop=None, state=RunState())
        assert report.reason is reason
        assert report.message.startswith(str(error))
        assert report.message.endswith("or use more ranks")


def _arguments(folder: Path) -> dict[str, Any]:
    """Of a Trainer with one step."""
    own = {"global_batch_size": 2, "total_step": 1, "work_dir": folder / "work"}
    return SmallRun(folder / "run").trainer_arguments() | own


def test_a_run_that_memory_has_ended_begins_anew_with_smaller_micro_batches_where_no_operator_counts(
    tmp_path: Path, memory: Shrink
) -> None:
    arguments = _arguments(tmp_path)
    memory(tokens=10)
    with pytest.raises(JobFailure, match="nothing is left to halve"):
        Trainer(**arguments).fit()
    memory(tokens=1000)
    model = Trainer(**arguments, auto_resume=True).fit()
    line = json.loads((names.attempt_folder(model.parent, 2) / names.METRICS).read_text())
    assert line["micro_batches"] == len(line["samples"]) > 2


def test_a_trainer_that_fails_gives_sigterm_back_and_takes_it_only_once_there_is_something_to_save(
    tmp_path: Path, memory: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    prepare, while_preparing = trainer.prepare_data, []

    def prepare_and_look(*arguments: Any, **options: Any) -> Any:
        while_preparing.append(signal.getsignal(signal.SIGTERM))
        return prepare(*arguments, **options)

    monkeypatch.setattr(trainer, "prepare_data", prepare_and_look)
    memory(tokens=10)
    with pytest.raises(JobFailure, match="nothing is left to halve"):
        Trainer(**_arguments(tmp_path)).fit()
    assert (while_preparing, signal.getsignal(signal.SIGTERM)) == ([before], before)


def test_a_model_that_memory_is_too_small_for_says_so_and_halves_nothing_in_the_next_attempt(tmp_path: Path) -> None:
    """Its embedding is larger than any address space: torch's allocator refuses it, where a rank would be refused."""
    arguments = _arguments(tmp_path)
    arguments["model_cfg"] = arguments["model_cfg"].model_copy(update={"vocab_size": 1 << 46})
    with pytest.raises(JobFailure) as caught:
        Trainer(**arguments).fit()
    assert caught.value.reason is Reason.LOAD_OUT_OF_MEMORY
    assert re.fullmatch(
        r"spec\.compute: memory ran out while a new model was loaded, before any pack; memory a rank, in GB: weights "
        r"9007199\.25, gradients 9007199\.25, moments 18014398\.51, .*; raise "
        r"spec\.compute\.resources\.limits\.memory, use more nodes or spec\.training\.lora "
        r"\(.*can't allocate memory.*\)",
        caught.value.message,
    )
    assert list((tmp_path / "work").glob("*/attempts/1"))
    assert list((tmp_path / "work").glob("*/attempts/*/out-of-memory")) == []


_MEMORY = MemoryEstimate(
    precision="bf16", pack_tokens=4096, weights=30 * 10**9, gradients=30 * 10**9, moments=60 * 10**9, logits=10**9
)


@pytest.mark.parametrize(
    ("lora", "device_bytes", "reason", "said"),
    [
        (
            None,
            80 * 10**9,
            Reason.INVALID_CONFIGURATION,
            "at least 121.00, and its device has 80.00; use more ranks, larger devices or spec.training.lora (no room)",
        ),
        (
            LoRAConfig(),
            120 * 10**9,
            Reason.LOAD_OUT_OF_MEMORY,
            "at least 121.00, and its device has 120.00; use more ranks, larger devices or "
            "spec.training.lora.quantize: nf4 (no room)",
        ),
        (
            LoRAConfig(quantize="nf4"),
            120 * 10**9,
            Reason.LOAD_OUT_OF_MEMORY,
            "at least 121.00, and its device has 120.00; use more ranks or larger devices (no room)",
        ),
    ],
    ids=["larger than its GPU", "as large", "packed already"],
)
def test_a_gpu_that_is_too_small_for_a_model_by_its_size_alone_is_refused_and_any_other_is_tried_again(
    lora: LoRAConfig | None, device_bytes: int, reason: Reason, said: str
) -> None:
    failure = load_failure("no room", what="hf://a/b", memory=_MEMORY, lora_cfg=lora, device_bytes=device_bytes)
    assert failure.reason is reason
    assert failure.message == (
        "spec.compute: memory ran out while hf://a/b was loaded, before any pack; memory a rank, in GB: weights 30.00, "
        f"gradients 30.00, moments 60.00, gathered 0.00, activations unknown, logits 1.00; together {said}"
    )


def test_any_other_error_of_a_load_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel of its own")

    monkeypatch.setattr(torch.optim.AdamW, "__init__", fail)
    with pytest.raises(RuntimeError, match="a kernel of its own"):
        SmallRun(tmp_path / "run").go()


@pytest.mark.full
def test_two_ranks_whose_run_does_not_resume_by_itself_say_how_it_goes_on_with_smaller_micro_batches(
    tmp_path: Path,
) -> None:
    store = meeting_place()
    mp.spawn(_one_of_two_without_memory, args=(store.port, _arguments(tmp_path), tmp_path), nprocs=2)
    for rank in (0, 1):
        said = (tmp_path / f"rank {rank}").read_text()
        assert re.fullmatch(
            r"memory ran out in a micro-batch of \d+ tokens, \d+ documents; start again with auto_resume=True, which "
            r"then takes parts of packs; to avoid that, set .*",
            said,
        )
    [attempt] = (tmp_path / "work").glob("*/attempts/*/out-of-memory")
    assert attempt.parent.name == "1"


def _one_of_two_without_memory(rank: int, port: int, arguments: dict[str, Any], folder: Path) -> None:
    become_rank(rank, port=port)
    register_module_forward_pre_hook(
        lambda module, _: (
            torch.empty(1 << 50) if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled() else None
        )
    )
    with pytest.raises(JobFailure) as ended:
        Trainer(**arguments).fit()
    (folder / f"rank {rank}").write_text(ended.value.message)
