"""What a run says of a learning rate that is never reached, or would never fall."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from sft_trainer.run import RunOptions
from sft_trainer.train import Trainer, trainer
from sft_trainer.train.schedule import learning_rate
from sftjob.failure import JobFailure, Reason
from sftjob.job import parse_manifest
from sftjob.options import AdamWConfig, LRConfig
from sftjob.spec import SFTJobSpec
from tests.sft_trainer.train.small_run import SmallRun
from tests.sftjob.bad_manifests import LEAST


class WarmingRun(SmallRun):
    warmup: int

    def options(self) -> RunOptions:
        return replace(super().options(), lr_cfg=LRConfig(warmup_ratio=self.warmup))


@pytest.mark.parametrize(
    ("warmup", "told"),
    [
        (4, []),
        (
            50,
            [
                "the warm-up of 50 steps is longer than the run: the learning rate rises to 0.00024, never to its peak "
                "of 0.003; lower lrSchedule.warmupRatio"
            ],
        ),
    ],
)
def test_a_warm_up_that_outlasts_the_run_is_told_at_its_start(
    warmup: int, told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = WarmingRun(tmp_path / "run", total_steps=4, lr=3e-3)
    run.warmup = warmup
    with caplog.at_level(logging.WARNING):
        run.go()
    assert [record.message for record in caplog.records if "warm-up" in record.message] == told
    assert run.lines()[-1]["lr"] == pytest.approx(3e-3 * min(1, 4 / warmup))


@pytest.mark.parametrize(
    ("lr_type", "warmup", "rates"),
    [
        ("cosine", 0, [9.0, 5.0, 1.0]),
        ("linear", 0, [9.0, 7.0, 5.0, 3.0, 1.0]),
        ("cosine", 0, [9.0, 1.0]),
        ("cosine", 0, [9.0]),
        ("linear", 0.03, [9.0]),
        ("constant", 0, [9.0, 9.0]),
        ("linear", 1, [9.0, 5.0, 1.0]),
        ("linear", 2, [4.5, 9.0, 5.0, 1.0]),
        ("cosine", 2, [4.5, 9.0]),
        ("cosine", 3, [3.0, 6.0]),
    ],
)
def test_the_rate_falls_from_the_peak_at_the_first_step_or_at_the_end_of_the_warm_up(
    lr_type: str, warmup: float, rates: list[float]
) -> None:
    config = LRConfig(lr_type=lr_type, lr_min=1.0, warmup_ratio=warmup)
    total = len(rates)
    found = [learning_rate(config, peak=9.0, step=step, total_steps=total) for step in range(1, total + 1)]
    assert found == pytest.approx(rates)


def test_a_lowest_rate_above_the_peak_is_refused_by_the_trainer(tmp_path: Path) -> None:
    rates = {"optim_cfg": AdamWConfig(lr=1e-5), "lr_cfg": LRConfig(lr_min=1e-3)}
    with pytest.raises(JobFailure) as refused:
        Trainer(**SmallRun(tmp_path / "run").trainer_arguments() | rates)
    assert refused.value.reason is Reason.INVALID_CONFIGURATION
    assert refused.value.message == (
        "lr_cfg.lr_min: 0.001 is more than the peak, 1e-05; lower it, or raise optim_cfg.lr"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"precision": "fp16"}, "precision: 'fp16'; use one of auto, fp32, bf16"),
        ({"global_batch_size": 0}, "global_batch_size: 0; use 1 or more"),
        ({"total_step": -5}, "total_step: -5; use 1 or more"),
        ({"total_epoch": 0}, "total_epoch: 0; use 1 or more"),
        ({"seed": -1}, "seed: -1; use 0 to 4294967295"),
        ({"report_to": "wandb"}, "report_to: is of type str; use list or tuple"),
        ({"report_to": None}, "report_to: is of type NoneType; use list or tuple"),
        ({"global_batch_size": "8"}, "global_batch_size: is of type str; use int"),
        ({"total_step": 2.5}, "total_step: is of type float; use int"),
        ({"auto_resume": "no"}, "auto_resume: is of type str; use bool"),
        ({"tokenizer_path": None}, "tokenizer_path: is of type NoneType; use str or PathLike"),
        ({"report_to": ["tensorbord"]}, "report_to: ['tensorbord']; use a list of tensorboard, wandb, trackio"),
    ],
)
def test_the_trainers_own_arguments_are_refused_as_a_jobs_are(arguments, said: str, tmp_path: Path) -> None:
    with pytest.raises(JobFailure) as refused:
        Trainer(**SmallRun(tmp_path / "run").trainer_arguments() | arguments)
    assert refused.value.message == said


def test_a_peak_below_the_lowest_rate_that_nobody_set_is_kept_to_the_end() -> None:
    training = {"optimizer": {"lr": 5e-7}, "lrSchedule": {"warmupRatio": 0}}
    spec = parse_manifest(LEAST | {"spec": LEAST["spec"] | {"training": training}}).spec
    rates = [learning_rate(spec.training.lr_schedule, peak=5e-7, step=step, total_steps=3) for step in (1, 2, 3)]
    assert rates == [5e-7] * 3


def test_a_stored_job_from_before_the_rule_is_still_read() -> None:
    training = {"optimizer": {"lr": 0.001}, "lrSchedule": {"lrMin": 0.01}}
    spec = SFTJobSpec.model_validate(LEAST["spec"] | {"training": training})
    assert spec.training.lr_schedule.lr_min == 0.01


def test_what_is_no_config_is_told_with_its_argument(tmp_path: Path) -> None:
    arguments = SmallRun(tmp_path / "run").trainer_arguments() | {"optim_cfg": {"lr": 1e-4}, "model_cfg": "base"}
    with pytest.raises(JobFailure) as refused:
        Trainer(**arguments)
    assert refused.value.message.splitlines() == [
        "model_cfg: is of type str; use ModelConfig or FolderConfig",
        "optim_cfg: is of type dict; use AdamWConfig",
    ]


@pytest.mark.parametrize(
    ("load_from", "said"),
    [
        ("nowhere", "nowhere: no such folder; name a Hugging Face model folder"),
        ("hf://Qwen/Qwen3-8B", "hf://Qwen/Qwen3-8B: is on a hub; download it first, with huggingface_hub."),
    ],
)
def test_a_model_that_is_not_there_is_told_before_the_data_is_read(
    load_from: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "prepare_data", None)
    arguments = SmallRun(tmp_path / "run").trainer_arguments() | {"load_from": load_from}
    with pytest.raises(JobFailure) as refused:
        Trainer(**arguments).fit()
    assert refused.value.message.startswith(said)
