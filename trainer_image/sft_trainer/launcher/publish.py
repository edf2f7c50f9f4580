"""The last stage of node 0: what the ranks exported becomes the job's output."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sft_trainer.report import Report
from sft_trainer.storage.checkpoints import exported_checkpoint, find_newest, last_checkpoint
from sft_trainer.storage.exports import export_folder
from sft_trainer.storage.fence import Fence
from sft_trainer.storage.folders import discard, hash_tree
from sft_trainer.storage.outputs import output_at
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.manifest import CheckpointManifest, ExportManifest
from sftjob.outcome import Artifact
from sftjob.plan import LaunchPlan


@dataclass(frozen=True)
class Finished:
    artifacts: list[Artifact]
    report: Report


def finished_before(plan: LaunchPlan) -> Finished | None:
    """What an earlier attempt trained and published, where that is all there is to do.

    Such an attempt ended before it could prove its success; this one only tells it.
    """
    exports = {output.uri: output_at(plan, output.uri).manifest() for output in plan.spec.outputs}
    if not exports or not all(exports.values()):
        return None
    final = find_newest(Path(plan.storage)).manifest
    if final is None and plan.spec.script is None:
        return None
    if final is not None and final.step != final.total_steps:
        return None
    exported = final and exported_checkpoint(Fence.of(plan), final)
    if final is not None and exported is None:
        return None
    for uri, export in exports.items():
        if export.checkpoint_digest != (exported and exported.digest()) or not output_at(plan, uri).holds(export):
            return None
    artifacts = [_artifact(plan, uri, export) for uri, export in exports.items()]
    if final is None:
        return Finished(artifacts, Report(reason=Reason.SUCCEEDED))
    report = Report(
        reason=Reason.SUCCEEDED,
        resumed_from=final.step,
        last_step=final.step,
        saved_step=final.step,
        final_digest=final.digest(),
    )
    return Finished(artifacts, report)


def publish_outputs(plan: LaunchPlan, fence: Fence, *, on_detail: Callable[[str], None]) -> list[Artifact]:
    """Raises JobFailure where the fence has passed to a later attempt, or something else took the output's place.

    `on_detail` hears how far uploads are, and may raise to stop them.
    """
    for index, output in enumerate(plan.spec.outputs):
        if plan.spec.script and not export_folder(plan, output.uri, attempt=plan.attempt).is_dir():
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"spec.output[{index}].uri: the script ended with exit code 0 and left nothing for {output.uri}; "
                f"train with a Trainer of sft_trainer, write into the folder that {names.OUTPUT_VARIABLE} names (of "
                "the first output), or leave the output out",
            )
    final = last_checkpoint(fence)
    exported = final and exported_checkpoint(fence, final)
    return [
        _publish(plan, fence, uri=output.uri, exported=exported, on_detail=on_detail) for output in plan.spec.outputs
    ]


def _publish(
    plan: LaunchPlan,
    fence: Fence,
    *,
    uri: str,
    exported: CheckpointManifest | None,
    on_detail: Callable[[str], None],
) -> Artifact:
    place, temporary = output_at(plan, uri), export_folder(plan, uri, attempt=plan.attempt)
    manifest = ExportManifest(
        owner_uid=plan.job.uid,
        attempt=plan.attempt,
        step=exported and exported.step,
        checkpoint_digest=exported and exported.digest(),
        files=hash_tree(temporary, leave_out=names.EXPORT_MANIFEST),
    )
    fence.check()
    published = place.manifest()
    is_of_this = published and published.checkpoint_digest == manifest.checkpoint_digest
    if is_of_this and place.holds(published):
        discard(temporary)
        return _artifact(plan, uri, published)
    try:
        place.publish(temporary, manifest, check=fence.check, on_detail=on_detail)
    except FileExistsError:
        raise JobFailure(
            Reason.STORAGE_REFUSED,
            f"spec.output: {place.name} appeared during training; delete it, and the model is published",
        ) from None
    return _artifact(plan, uri, manifest)


def _artifact(plan: LaunchPlan, uri: str, manifest: ExportManifest) -> Artifact:
    output = next(output for output in plan.spec.outputs if output.uri == uri)
    return Artifact(
        uri=uri,
        format=output.format,
        digest=manifest.digest(),
        step=manifest.step,
        bytes=sum(entry.bytes for entry in manifest.files),
    )
