"""Models and data in a bucket: what comes of them, how a download goes on, and what is said where it can't."""

import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore import exceptions

from sft_trainer.downloads import patience
from sft_trainer.downloads.sources import BucketSource
from sft_trainer.from_plan import run_options
from sft_trainer.s3 import bucket
from sft_trainer.s3.bucket import Place
from sft_trainer.s3.download import fill, pin
from sft_trainer.s3.refusals import is_passing, read_refusal
from sftjob.failure import NEVER_RETRIED, JobFailure, Reason, exit_code
from tests.s3_server import S3Server
from tests.sft_trainer.download_node import Node, downloaded, nodes_of, until
from tests.sft_trainer.hub.test_download_stage import MODEL, NEEDED, WEIGHTS

MIB = 1 << 20
PART = 16 * MIB
LLAMA = {"loadFrom": {"uri": "s3://bucket/llama"}}


@pytest.fixture
def node(tmp_path: Path, s3: S3Server) -> Iterator[Callable[..., Node]]:
    for path, content in MODEL.items():
        s3.put(f"llama/{path}", content)
    s3.requests.clear()
    with nodes_of(tmp_path, model=LLAMA, environment=s3.environment) as make:
        yield make


def ranges(s3: S3Server, key: str) -> list[str | None]:
    return [one.range for one in s3.asked("GET", f"^bucket/{key}$")]


def test_of_a_model_comes_what_training_needs_and_a_later_attempt_asks_for_nothing(
    s3: S3Server, node: Callable[..., Node]
) -> None:
    one = node()
    assert one.run() == 0
    options = run_options(one.plan)
    assert options.load_from == options.tokenizer_path
    assert downloaded(Path(options.load_from)) == {path: MODEL[path] for path in NEEDED}
    assert {request.key for request in s3.asked("GET", "^bucket/")} == {f"bucket/llama/{path}" for path in NEEDED}
    assert ranges(s3, "llama/model.safetensors") == [
        f"bytes=0-{PART - 1}",
        f"bytes={PART}-{len(WEIGHTS) - 1}",
    ]
    assert (one.progress.stage, one.progress.detail) == ("DownloadingModel", "s3://bucket/llama: 26.2 of 26.2 MB")
    assert one.progress.resolved is not None
    assert str(one.progress.resolved.model_revision).startswith("sha256:")

    s3.put("llama/config.json", b"moved on")
    s3.requests.clear()
    second = node(attempt=2)
    assert second.run() == 0
    assert s3.requests == []
    assert second.progress.resolved == one.progress.resolved


@pytest.mark.usefixtures("s3_credentials")
def test_of_nodes_with_storage_in_a_bucket_each_downloads_what_node_0_has_pinned(
    s3: S3Server, node: Callable[..., Node]
) -> None:
    zero, other = (node(nodes_=2, rank=rank, output="s3://bucket/tuned") for rank in range(2))
    s3.requests.clear()
    other.start()
    until(lambda: other.progress.detail or (other.process and other.process.poll() is not None))
    assert other.progress.detail == "node 0 looks up what is downloaded"
    assert s3.asked("GET", "llama") == []
    assert zero.run() == 0
    assert other.wait() == 0
    assert len(s3.asked("GET", r"^bucket\?llama/")) == 1
    assert other.progress.resolved == zero.progress.resolved
    own, theirs = (Path(run_options(one.plan).load_from or "") for one in (other, zero))
    assert own != theirs
    assert downloaded(own) == downloaded(theirs) == {path: MODEL[path] for path in NEEDED}
    # One that comes later takes no other version.
    s3.put("llama/config.json", b"moved on")
    late = node(attempt=2, nodes_=2, rank=1, output="s3://bucket/tuned")
    shutil.rmtree(own.parents[3])
    assert late.run() == 66
    assert "config.json of s3://bucket/llama has changed since the job's first attempt listed it" in late.report.message


def test_data_is_an_object_or_what_would_be_read_of_a_folder_at_any_depth(
    s3: S3Server, node: Callable[..., Node]
) -> None:
    s3.put("data/train.jsonl", b"{}\n")
    s3.put("data/parts/1.jsonl", b"{}\n")
    s3.put("data/parts/2.jsonl", b"[]\n")
    s3.put("data/parts/2/en/parts/3.jsonl", b"{}\n\n")
    s3.put("data/parts/2/en/dataset_info.json", b"{}")
    s3.put("data/parts/.old/4.jsonl", b"hidden")
    s3.put("data/parts/_SUCCESS", b"of the program that wrote them")
    s3.put("data/parts/photos.tar", b"is not read")
    one = node(
        data=[
            {"name": "file", "uri": "s3://bucket/data/train.jsonl"},
            {"name": "folder", "uri": "s3://bucket/data/parts/"},
        ]
    )
    assert one.run() == 0
    file, folder = (entry.dataset.anno_path for entry in run_options(one.plan).dataloader_cfg.dataset_config_list)
    assert (file.name, file.read_bytes()) == ("train.jsonl", b"{}\n")
    assert downloaded(folder) == {
        "1.jsonl": b"{}\n",
        "2.jsonl": b"[]\n",
        "2/en/parts/3.jsonl": b"{}\n\n",
    }
    assert len(one.progress.resolved.data_revisions) == 2


def test_a_cut_connection_and_a_busy_store_are_asked_again(s3: S3Server, node: Callable[..., Node]) -> None:
    s3.cuts["bucket/llama/model.safetensors"] = [5 * MIB]
    s3.busy = [503]
    one = node()
    assert one.run() == 0
    assert (Path(run_options(one.plan).load_from) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.usefixtures("s3_credentials")
def test_what_has_arrived_when_a_slow_request_s_time_is_over_is_kept(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = random.Random(0).randbytes(4 * MIB)
    s3.put("slow", content)
    monkeypatch.setattr(bucket, "_REQUEST_SECONDS", 3)
    s3.bytes_per_second = len(content) / 9
    place = Place("s3://bucket/slow")
    with (tmp_path / "slow").open("wb") as opened:
        fill(opened, place.listed()[0], place, on_detail=lambda _: None)
    assert (tmp_path / "slow").read_bytes() == content
    begun = [int(asked.split("=")[1].split("-")[0]) for asked in ranges(s3, "slow") if asked]
    assert begun == sorted(set(begun))
    assert len(begun) > 1


def test_after_a_kill_the_next_attempt_goes_on_in_the_middle_of_the_object(
    s3: S3Server, node: Callable[..., Node]
) -> None:
    held = s3.hold("GET", "model.safetensors", passing=1)
    first = node().start()
    partial = Path(first.plan.storage) / "cache/hub/model/partial"
    until(held.reached.is_set)
    until(lambda: any(file.stat().st_size == PART for file in partial.iterdir()))
    first.kill()
    held.released.set()
    s3.requests.clear()
    second = node(attempt=2)
    assert second.run() == 0
    assert (Path(run_options(second.plan).load_from) / "model.safetensors").read_bytes() == WEIGHTS
    assert [(one.key, one.range) for one in s3.requests] == [
        ("bucket/llama/model.safetensors", f"bytes={PART}-{len(WEIGHTS) - 1}")
    ]
    assert not partial.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s3: s3.put("llama/model.safetensors", b"another"), "has changed"),
        (lambda s3: s3.delete("llama/model.safetensors"), "is gone"),
    ],
)
def test_what_has_changed_since_the_first_attempt_is_not_mixed_with_what_came_before(
    s3: S3Server, node: Callable[..., Node], change: Callable[[S3Server], None], said: str
) -> None:
    held = s3.hold("GET", "model.safetensors", passing=1)
    first = node().start()
    until(held.reached.is_set)
    first.kill()
    held.released.set()
    change(s3)
    second = node(attempt=2)
    assert second.run() == 66
    assert (
        f"spec.model.loadFrom.uri: model.safetensors of s3://bucket/llama {said} since the job's first attempt"
        in second.report.message
    )


DATA = [{"name": "chats", "uri": "s3://bucket/data/train.jsonl"}]
REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    (
        "nothing there",
        {"model": {"loadFrom": {"uri": "s3://bucket/lama"}}},
        66,
        "spec.model.loadFrom.uri: s3://bucket/lama: there is nothing at lama of the bucket bucket; correct the name",
    ),
    (
        "no data there",
        {"data": DATA},
        65,
        "spec.data.datasets[0].uri: s3://bucket/data/train.jsonl: there is nothing at data/train.jsonl of the bucket",
    ),
    (
        "no such bucket",
        {"model": {"loadFrom": {"uri": "s3://buckte/llama"}}},
        66,
        "spec.model.loadFrom.uri: s3://buckte/llama: there is no bucket buckte at http://127.0.0.1",
    ),
    (
        "a folder of splits",
        {"data": [{"name": "d", "uri": "s3://bucket/splits"}], "model": {"loadFrom": {"uri": "file:///model"}}},
        65,
        "spec.data.datasets[0].uri: s3://bucket/splits/de: its folders are splits of a dataset, dev, train; name one",
    ),
    (
        "an unknown key",
        {"AWS_ACCESS_KEY_ID": "nobody"},
        66,
        "spec.model.loadFrom.uri: s3://bucket/llama is refused by http://127.0.0.1",
    ),
    (
        "a wrong secret",
        {"data": DATA, "model": {"loadFrom": {"uri": "file:///model"}}, "AWS_SECRET_ACCESS_KEY": "wrong"},
        65,
        "with the given AWS_ACCESS_KEY_ID (SignatureDoesNotMatch); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        "no credentials",
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"},
        66,
        "without an AWS_ACCESS_KEY_ID (no credentials in the environment, and none of this machine's); set AWS_ACCESS",
    ),
    (
        "an object for a model",
        {"model": {"loadFrom": {"uri": "s3://bucket/llama/config.json"}}},
        66,
        "s3://bucket/llama/config.json is one object; name the folder that it lies in",
    ),
]


@pytest.mark.parametrize(("options", "code", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_can_t_be_read_is_told_with_its_uri_and_a_remedy(
    s3: S3Server, node: Callable[..., Node], options: dict[str, Any], code: int, said: str
) -> None:
    for key in ("splits/de/train/1.jsonl", "splits/de/dev/1.jsonl"):
        s3.put(key, b"{}\n")
    one = node(**options)
    assert one.run() == code
    assert said in one.report.message


def test_a_store_that_can_t_be_reached_is_asked_again_and_then_left_to_another_attempt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "password")
        source = BucketSource("spec.model.loadFrom", "s3://bucket/llama", "model", True, tmp_path)
        told: list[str] = []

        def lose_patience(detail: str) -> None:
            told.append(detail)
            monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1)

        with pytest.raises(JobFailure) as ended:
            pin(source, on_detail=lose_patience)
    assert told == ["the object store does not answer (BucketFailure), asking again"]
    assert f"spec.model.loadFrom.uri: s3://bucket/llama: no useful answer from {url}" in ended.value.message
    assert "AWS_ENDPOINT_URL" in ended.value.message
    assert ended.value.reason not in NEVER_RETRIED
    assert exit_code(ended.value.reason) == 70


def test_a_key_that_can_t_be_read_is_told_at_once_and_is_no_matter_of_the_network(monkeypatch) -> None:
    """As the client says it of `f/nl\\nx.jsonl`; it could not put such an object there itself."""

    def refuse(*_: object, **__: object) -> None:
        raise exceptions.GenericError(
            'Generic S3 error: Encountered object with invalid path: Error parsing Path "f/nl'
        )

    monkeypatch.setattr(bucket.obstore, "list", refuse)
    source = BucketSource("spec.data.datasets[0]", "s3://bucket/f", "dataset", takes_weights=False, folder=Path("f"))
    with pytest.raises(bucket.BucketFailure) as failure:
        Place(source.uri).listed()
    assert not is_passing(failure.value)
    refusal = read_refusal(source, failure.value)
    assert refusal.reason is Reason.INVALID_DATA
    assert refusal.message.startswith(
        "spec.data.datasets[0].uri: s3://bucket/f: below it is an object whose key can't be read (Generic S3 error: "
        'Encountered object with invalid path: Error parsing Path "f/nl)'
    )
