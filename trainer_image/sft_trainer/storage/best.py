"""Which of a storage's checkpoints are the best, by what their manifests say. Pure.

What a stop or the clock alone has saved does not count: which model comes out must not depend on when a run was
interrupted, or how fast it is.
"""

from collections.abc import Mapping

from sftjob.manifest import CheckpointManifest


def best_first(manifests: Mapping[int, CheckpointManifest | None]) -> list[int]:
    """Those with an evaluation of their very step: by its loss, the lowest first, the earliest of equals."""
    losses = {
        step: manifest.evaluation.loss
        for step, manifest in sorted(manifests.items())
        if manifest and manifest.evaluation and manifest.evaluation.step == step and _is_regular(manifest)
    }
    return sorted(losses, key=lambda step: losses[step])


def _is_regular(manifest: CheckpointManifest) -> bool:
    # A step that a stop has saved can turn out to be the last one, when it is evaluated.
    return not (manifest.saved_by_stop or manifest.saved_by_clock) or manifest.step == manifest.total_steps
