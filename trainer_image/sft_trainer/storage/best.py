"""Which of a storage's checkpoints are the best, by what their manifests say. Pure."""

from collections.abc import Mapping

from sftjob.manifest import CheckpointManifest


def best_first(manifests: Mapping[int, CheckpointManifest | None]) -> list[int]:
    """Those with an evaluation of their very step: by its loss, the lowest first, the earliest of equals."""
    losses = {
        step: manifest.evaluation.loss
        for step, manifest in sorted(manifests.items())
        if manifest and manifest.evaluation and manifest.evaluation.step == step
    }
    return sorted(losses, key=lambda step: losses[step])
