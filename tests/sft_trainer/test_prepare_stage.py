"""The prepare stage of a job: how many processes tokenise, and what a pre-flight finds wrong where no GPU is."""

from pathlib import Path
from typing import Any

import pytest

from sft_trainer import prepare
from sft_trainer.datasets import build, open_tokens
from sft_trainer.progress import write_progress
from sft_trainer.report import Report, read_reports
from sft_trainer.task import RankTask
from sftjob.base import utc_now
from sftjob.inspection import ShownSamples
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.progress import Progress, Stage
from sftjob.spec import SFTJobSpec
from tests.sft_trainer.datasets.chats import pair, write_chats
from tests.sft_trainer.model import tiny_models as tiny
from tests.sft_trainer.train.small_run import save_base, save_tokenizer


def prepared(
    folder: Path, *, prepare_only: bool = False, model: dict[str, Any] | None = None, **sections: Any
) -> Report:
    """What the stage says of a job with 100 short chats."""
    chats = write_chats(folder / "chats.jsonl", [pair("a", str(number)) for number in range(100)])
    tokenizer = {"uri": save_tokenizer(folder / "t").as_uri()}
    spec = SFTJobSpec.model_validate(
        {
            "model": (model or {"preset": "Qwen3Dense0P6B"}) | {"tokenizer": tokenizer},
            "data": {"datasets": [{"name": "chats", "uri": chats.as_uri()}], "packing": {"maxLength": 64}},
            "training": {},
            "output": [{"uri": f"file://{folder}/tuned"}],
        }
        | sections
    )
    plan = LaunchPlan(
        job=JobReference(namespace="n", name="j", uid="u"),
        attempt=1,
        spec=spec,
        mounts=[Mount(uri=uri, path=uri.removeprefix("file://")) for uri in spec.uris],
        prepare_only=prepare_only,
    )
    scratch = folder / "scratch"
    scratch.mkdir()
    RankTask(plan=plan).write(scratch)
    write_progress(scratch, Progress(attempt=1, stage=Stage.PREPARING_DATA, reported_at=utc_now()))
    code = prepare.prepare_stage(scratch)
    report = read_reports(scratch)["prepare"]
    assert code == {"Succeeded": 0, "InvalidConfiguration": 64, "ModelUnreadable": 66}[report.reason]
    return report


def test_a_large_file_is_tokenised_by_a_process_for_each_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = build._started
    monkeypatch.setattr(build, "_started", lambda task: started.append(task.part) or start(task))
    monkeypatch.setattr(open_tokens, "_BYTES_A_WORKER", 1000)
    monkeypatch.setattr(prepare, "available_cpus", lambda: 2.5)
    report = prepared(tmp_path)
    assert report.data is not None
    shown = ShownSamples.from_json((tmp_path / "scratch/samples.json").read_text())
    assert shown.receipt == report.data
    assert [[piece.text for piece in sample if piece.is_trained] for sample in shown.samples] == [
        [f"{answer}<|eot_id|>"] for answer in "012"
    ]
    assert report.data.samples == 100
    assert started == [0, 1]


def test_a_pre_flight_refuses_a_model_that_no_device_of_the_job_can_hold(tmp_path: Path) -> None:
    """8,190,735,360 numbers of 4 bytes, four times: weights, gradients and two moments."""
    asked = {"resources": {"limits": {"nvidia.com/mig-3g.40gb": 1}}}
    report = prepared(tmp_path, prepare_only=True, model={"preset": "Qwen3Dense8B"}, compute=asked)
    assert report.message == (
        "spec.compute: weights, gradients and moments of a rank take 122.1 GiB (ranks: 1), and a device that is asked "
        "for has 40 GiB at most; use more ranks, larger devices, or spec.training.lora"
    )


def test_a_pre_flight_takes_more_ranks_or_devices_of_unknown_size_for_enough(tmp_path: Path) -> None:
    for number, asked in enumerate(
        (
            {"nodes": 2, "processesPerNode": 8, "resources": {"limits": {"nvidia.com/mig-1g.10gb": 8}}},
            {"resources": {"limits": {"nvidia.com/gpu": 1}}, "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        report = prepared(folder, prepare_only=True, model={"preset": "Qwen3Dense8B"}, compute=asked)
        assert (report.reason, report.message) == ("Succeeded", "")


def test_a_pre_flight_counts_processes_by_the_gpus_that_are_asked_for(tmp_path: Path) -> None:
    asked = {"processesPerNode": 64, "resources": {"limits": {"nvidia.com/gpu": 8}}}
    report = prepared(tmp_path, prepare_only=True, compute=asked)
    assert report.message == (
        "spec.compute.processesPerNode: 64 is more than the 8 GPUs in spec.compute.resources.limits; use at most 8"
    )


def test_a_pre_flight_does_not_miss_the_gpus_that_are_asked_for_later(tmp_path: Path) -> None:
    report = prepared(
        tmp_path,
        prepare_only=True,
        model={"loadFrom": {"uri": save_base(tmp_path / "base").as_uri()}},
        training={"lora": {"quantize": "nf4"}},
        compute={"resources": {"limits": {"nvidia.com/gpu": 1}}},
    )
    assert (report.reason, report.message) == ("Succeeded", "")


def test_a_pre_flight_sees_weights_that_are_cut_short(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    model = {"loadFrom": {"uri": base.as_uri()}}
    report = prepared(tmp_path, prepare_only=True, model=model)
    assert report.reason == "ModelUnreadable"
    assert f"{weights}: cut short or not safetensors" in report.message


def test_a_pre_flight_refuses_packs_in_which_a_long_document_would_change_the_positions_of_others(
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = tiny.save_random_model(tmp_path / "llama", "llama", rope_parameters=rope, max_position_embeddings=32)
    report = prepared(tmp_path, prepare_only=True, model={"loadFrom": {"uri": f"file://{model}"}})
    assert report.message.startswith("spec.data.packing.maxLength: 64 is more than the max_position_embeddings of 32 ")


def test_the_stage_refuses_tokens_for_which_the_model_has_no_row(tmp_path: Path) -> None:
    model = {"preset": "Qwen3Dense0P6B", "overrides": {"vocabSize": 64}}
    assert "but the model's embedding has 64 rows; " in prepared(tmp_path, model=model).message
