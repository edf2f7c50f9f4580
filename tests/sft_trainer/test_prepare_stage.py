"""The prepare stage of a job: how many processes tokenise."""

from pathlib import Path

import pytest

from sft_trainer import prepare
from sft_trainer.datasets import build, open_tokens
from sft_trainer.progress import write_progress
from sft_trainer.report import read_reports
from sft_trainer.task import RankTask
from sftjob.base import utc_now
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.progress import Progress, Stage
from sftjob.spec import SFTJobSpec
from tests.sft_trainer.datasets.chats import pair, write_chats
from tests.sft_trainer.train.small_run import save_tokenizer


def test_a_large_file_is_tokenised_by_a_process_for_each_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = build._started
    monkeypatch.setattr(build, "_started", lambda task: started.append(task.part) or start(task))
    monkeypatch.setattr(open_tokens, "_BYTES_A_WORKER", 1000)
    monkeypatch.setattr(prepare, "available_cpus", lambda: 2.5)
    chats = write_chats(tmp_path / "chats.jsonl", [pair("a", str(number)) for number in range(100)])
    spec = SFTJobSpec.model_validate(
        {
            "model": {"preset": "Qwen3Dense0P6B", "tokenizer": {"uri": save_tokenizer(tmp_path / "t").as_uri()}},
            "data": {"datasets": [{"name": "chats", "uri": chats.as_uri()}], "packing": {"maxLength": 64}},
            "training": {},
            "output": [{"uri": f"file://{tmp_path}/tuned"}],
        }
    )
    plan = LaunchPlan(
        job=JobReference(namespace="n", name="j", uid="u"),
        attempt=1,
        spec=spec,
        mounts=[Mount(uri=uri, path=uri.removeprefix("file://")) for uri in spec.uris],
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    RankTask(plan=plan).write(scratch)
    write_progress(scratch, Progress(attempt=1, stage=Stage.PREPARING_DATA, reported_at=utc_now()))
    assert prepare.prepare_stage(scratch) == 0
    report = read_reports(scratch)["prepare"]
    assert report.data is not None
    assert report.data.samples == 100
    assert started == [0, 1]
