"""A real `sft run` with everything in buckets."""

from pathlib import Path
from typing import Any

from e2e.local_run import LocalRun
from s3_server import S3Server

STEPS = 6


class BucketRun(LocalRun):
    """Its storage is node 0's own copy."""

    @property
    def storage(self) -> Path:
        return self.folder / "s3" / "bucket" / self.name / "model.checkpoints"

    @property
    def claims(self) -> list[str]:
        return []

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    def fetched(self, s3: S3Server) -> LocalRun:
        """What it has left in the bucket, as a run with its storage in a folder."""
        folder = self.folder / "fetched"
        s3.fetch_folder(f"{self.name}/model.checkpoints", folder / "model.checkpoints")
        return LocalRun(folder, {})


def bucket_job(name: str, **spec: dict[str, Any]) -> dict[str, Any]:
    """6 steps, saved after each; `spec` adds fields by section."""
    sections: dict[str, Any] = {
        "model": {"loadFrom": {"uri": "s3://bucket/llama"}},
        "data": {
            "datasets": [{"name": "chats", "uri": "s3://bucket/chats/train.jsonl"}],
            "packing": {"maxLength": 64},
        },
        "training": {"totalStep": STEPS},
        "checkpoint": {"everySteps": 1},
        "output": [{"uri": f"s3://bucket/{name}/model"}],
    }
    for section, fields in spec.items():
        sections[section] = sections.get(section, {}) | fields
    return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": name}, "spec": sections}
