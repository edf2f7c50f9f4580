from pathlib import Path

import pytest
import yaml

from sftjob.job import Manifest, parse_manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return parse_manifest(yaml.safe_load((ROOT / "examples" / "lora.yaml").read_text()))


def test_the_lora_example_trains_as_it_was_tried_and_leaves_both_formats(manifest: Manifest) -> None:
    training = manifest.spec.training
    assert training.lora is not None
    assert training.lora.to_json_dict() == {
        "rank": 16,
        "alpha": 32,
        "rslora": False,
        "dora": False,
        "quantize": "none",
        "dropout": 0.0,
        "targetModules": [],
        "modulesToSave": [],
    }
    assert (training.total_step, training.optimizer.lr) == (16, 2e-3)
    assert [(output.uri, output.format) for output in manifest.spec.output] == [
        ("pvc://results/lora-adapter", "adapter"),
        ("pvc://results/lora-model", "hf"),
    ]


def test_the_lora_example_reads_what_the_quickstart_reads(manifest: Manifest) -> None:
    quickstart = parse_manifest(yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text()))
    assert (manifest.spec.model, manifest.spec.data) == (quickstart.spec.model, quickstart.spec.data)
