from pathlib import Path
from typing import Any

import pytest
import yaml

from sftjob.job import Manifest, parse_manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    document: Any = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    return parse_manifest(document)


def test_the_quickstart_is_valid_and_speaks_of_three_claims(manifest: Manifest) -> None:
    assert manifest.metadata.name == "quickstart"
    assert manifest.spec.uris == [
        "pvc://data/tickets.jsonl",
        "pvc://results/checkpoints",
        "pvc://results/model",
        "pvc://models/SmolLM2-135M-Instruct",
    ]


def test_the_quickstart_writes_at_most_three_full_checkpoints(manifest: Manifest) -> None:
    checkpoint, steps = manifest.spec.checkpoint, manifest.spec.training.total_step
    assert steps is not None
    assert checkpoint.every_steps is not None
    saved = {*range(checkpoint.every_steps, steps + 1, checkpoint.every_steps), steps}
    assert saved == {8, 16}
    assert checkpoint.keep_last == 2


def test_the_quickstart_trains_as_it_was_tried(manifest: Manifest) -> None:
    training = manifest.spec.training
    assert (training.total_step, training.global_batch_size, manifest.spec.data.packing.max_length) == (16, 1, 512)
    assert training.optimizer.lr == 2e-4
    assert training.lr_schedule.to_json_dict() == {"lrType": "cosine", "warmupRatio": 2.0, "lrMin": 1e-5}
    assert manifest.spec.compute.world_size == 1
