"""The loss on data that is never trained on: exact, kept through stops, and what it decides."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import ValidationError
from small_run import EVALUATED, TRAINED, SmallRun
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.datasets.config import EvaluationConfig
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.model.evaluating import evaluating
from sft_trainer.train import loop, telling
from sft_trainer.train.evaluation import Evaluation, following
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import World
from sftjob.failure import JobFailure, Reason
from sftjob.progress import Stage
from tests.e2e.held_out import assistant_loss


@pytest.fixture
def stops(monkeypatch):
    """A SIGTERM that is heard at the n-th place where ranks look for one."""

    def at(place: int | None) -> None:
        looked = 0

        def seconds_ago(*_: object) -> float | None:
            nonlocal looked
            looked += 1
            return 0.0 if looked == place else None

        monkeypatch.setattr(loop, "agreed_seconds_ago", seconds_ago)

    return at


@pytest.fixture
def losses(monkeypatch):
    """Evaluations that find these losses, one after the other."""

    def give(*values: float) -> None:
        left = list(values)
        monkeypatch.setattr(Evaluation, "mean_loss", lambda *_, **__: left.pop(0))

    return give


def test_an_evaluation_says_how_far_it_is_and_training_says_nothing_of_it(tmp_path: Path, monkeypatch) -> None:
    told: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        telling.RunTeller, "progress", lambda _, **said: told.append((said.get("stage"), said.get("detail")))
    )
    SmallRun(tmp_path / "run", {"every_steps": 6}).go()
    first = told.index((Stage.EVALUATING, None))
    number = len(told[first + 1 :][: told[first + 1 :].index((Stage.TRAINING, None))])
    assert number > 1
    expected = [(None, f"{index} of {number} batches") for index in range(1, number + 1)]
    assert told[first + 1 : first + 1 + number] == expected


def test_the_loss_is_that_of_transformers_alone_over_each_chat_alone(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", {"every_steps": 4})
    run.go()
    assert list(run.evaluations()) == [4, 6]
    expected = assistant_loss(run.exported, [{"messages": chat} for chat in EVALUATED])
    assert run.evaluations()[6] == pytest.approx(expected, rel=1e-5)
    # Without training it would be ln 264 = 5.6.
    assert run.evaluations()[6] < run.evaluations()[4] < 5.5


def test_the_loss_does_not_depend_on_packing_or_ranks(tmp_path: Path) -> None:
    soft = SmallRun(tmp_path / "soft", {"every_steps": 1}, lr=0.0, total_steps=2)
    alone = soft.another("alone", packing="none")
    soft.go()
    alone.go()
    # Three packs for two ranks: the last rank gets pads.
    two = soft.another("two")
    two.options()
    mp.spawn(_one_of_two, args=(two, tmp_path), nprocs=2)
    two.attempts = 1
    assert list(soft.evaluations()) == [1, 2]
    for other in (alone, two):
        assert other.evaluations() == pytest.approx(soft.evaluations(), rel=1e-6)


def _one_of_two(rank: int, run: SmallRun, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run.go(world=World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,))))
    dist.destroy_process_group()


def test_training_with_evaluations_is_bit_equal_to_training_without(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "with", {"every_steps": 1})
    plain = run.another("plain", evaluation=None)
    run.go()
    plain.go()
    assert [line["loss"] for line in run.lines() if "loss" in line] == [line["loss"] for line in plain.lines()]
    for name, tensor in plain.tensors(6).items():
        assert torch.equal(run.tensors(6)[name], tensor), name


def test_a_model_is_evaluated_without_dropout_and_trained_with_it_again() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout())
    ones = torch.ones(64)
    with evaluating(model):
        assert torch.equal(model(ones), model[0](ones))
        assert not model(ones).requires_grad
    assert not torch.equal(model(ones), model[0](ones))


def test_a_held_out_sample_is_evaluated_once_and_never_trained(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", {"fraction": 0.25})
    options = run.options()

    def prepared(**changes):
        config = options.dataloader_cfg.model_copy(update=changes)
        return prepare_data(config, tokenizer_path=options.tokenizer_path, cache_dir=tmp_path / "cache", seed=5)

    [entry] = options.dataloader_cfg.dataset_config_list
    twice = entry.model_copy(update={"dataset": entry.dataset.model_copy(update={"sample_ratio": 2.0})})
    data = prepared(dataset_config_list=[twice])
    held, trained = data.evaluation.packs.members.tolist(), data.packs.members.tolist()
    assert len(held) == len(set(held)) == 6
    assert sorted(trained) == sorted(2 * [sample for sample in range(len(TRAINED)) if sample not in held])
    assert (data.receipt.samples, data.receipt.held_out) == (36, 6)
    assert prepared(dataset_config_list=[twice]).evaluation.packs.members.tolist() == held

    fractions = [None, 0.25, 0.5]
    configs = [fraction and options.evaluation.model_copy(update={"fraction": fraction}) for fraction in fractions]
    assert len({prepared(evaluation=config).digest for config in configs}) == 3


def test_a_fraction_that_is_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFailure, match=r"evaluation\.fraction: 0\.01 of 24 samples is none of them") as caught:
        SmallRun(tmp_path / "run", {"fraction": 0.01}).go()
    assert caught.value.reason is Reason.INVALID_CONFIGURATION


def test_there_is_one_source_of_evaluation_data(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="fraction: missing, as is dataset_config_list; give one of them"):
        EvaluationConfig(every_steps=5)
    datasets = SmallRun(tmp_path / "run").options().dataloader_cfg.dataset_config_list
    with pytest.raises(ValidationError, match="fraction: given together with dataset_config_list; remove one"):
        EvaluationConfig(fraction=0.1, dataset_config_list=datasets)


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path: Path, losses) -> None:
    losses(3.0, 1.0, 2.0, 2.5, 1.0, 1.5)
    run = SmallRun(tmp_path / "run", {"every_steps": 1}, keep_last=2)
    run.go()
    assert run.checkpoints() == [2, 5, 6]
    assert run.manifest(6).evaluation.to_json_dict() == {
        "step": 6,
        "loss": 1.5,
        "bestStep": 2,
        "bestLoss": 1.0,
        "withoutImprovement": 4,
    }


def test_a_checkpoint_that_was_not_evaluated_is_never_the_best(tmp_path: Path, losses) -> None:
    losses(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    run = SmallRun(tmp_path / "run", {"every_steps": 2}, interval=3, total_steps=12, keep_last=2)
    run.go()
    # Step 3 came after the lowest loss, which is that of step 2.
    assert run.checkpoints() == [6, 9, 12]


def test_patience_ends_the_run_whole(tmp_path: Path, losses) -> None:
    losses(2.0, 3.0, 2.0)
    run = SmallRun(tmp_path / "run", {"every_steps": 1, "patience": 2}, interval=None)
    state = run.go()
    assert (state.last_step, run.checkpoints()) == (3, [3])
    assert run.manifest(3).total_steps == 3
    assert state.final_digest == run.manifest(3).digest()
    assert (run.exported / "model.safetensors").exists()
    # Another attempt finds it finished.
    losses()
    again = run.go()
    assert (again.last_step, again.final_digest, run.lines()) == (3, state.final_digest, [])


# A step looks twice, once a micro-batch, and an evaluation of three packs thrice: those of steps 2, 4 and 6 are the
# looks 5 to 7, 12 to 14 and 19 to 21.
@pytest.mark.parametrize("place", [5, 8, 13, 15, 19, 21])
def test_a_stop_at_any_place_changes_no_evaluation(place: int, tmp_path: Path, stops) -> None:
    stops(None)
    run = SmallRun(tmp_path / "undisturbed", {"every_steps": 2, "patience": 2}, lr=0.0, total_steps=9)
    run.go()
    assert run.checkpoints() == [1, 2, 3, 4, 5, 6]
    stopped = run.another("stopped", interval=3)
    stops(place)
    with pytest.raises(Preempted):
        stopped.go()
    stops(None)
    state = stopped.go()
    assert stopped.evaluations(attempt=1) | stopped.evaluations(attempt=2) == run.evaluations()
    final = stopped.manifest(6)
    assert final.evaluation == run.manifest(6).evaluation
    assert (state.last_step, final.total_steps, state.final_digest) == (6, 6, final.digest())


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(JobFailure, match="step 4: the evaluation loss is nan"):
        following(None, step=4, loss=float("nan"))
