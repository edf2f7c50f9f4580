"""Where an output lies until it is published, and what earlier attempts left there.

Called by the ranks, which write, and by the launcher of node 0, which publishes.
"""

from pathlib import Path

from sft_trainer.storage.fence import Fence
from sft_trainer.storage.folders import discard
from sftjob import names
from sftjob.failure import JobFailure, Reason, storage_reason
from sftjob.plan import LaunchPlan


def export_folder(plan: LaunchPlan, uri: str, *, attempt: int) -> Path:
    """Where the ranks of an attempt write an output until it is published."""
    folder = Path(plan.path(uri))
    return folder.with_name(names.temporary(folder.name, attempt=attempt))


def refuse_unwritable_outputs(plan: LaunchPlan) -> None:
    """Raises JobFailure where the ranks could not write an output once they have trained."""
    for index, output in enumerate(plan.spec.outputs):
        folder, final = export_folder(plan, output.uri, attempt=plan.attempt), Path(plan.path(output.uri))
        if final.is_symlink() or final.is_mount():
            what = f"a symbolic link to {final.readlink()}" if final.is_symlink() else "where something is mounted"
            raise JobFailure(
                Reason.STORAGE_REFUSED,
                f"spec.output[{index}].uri: {final} is {what}, and a model takes its place by one rename; name a "
                "folder in that one",
            )
        try:
            folder.mkdir(parents=True)
            folder.rmdir()
        except OSError as error:
            raise JobFailure(
                storage_reason(error),
                f"spec.output[{index}].uri: {folder.parent} can't be written ({error.strerror}); give the pods' user "
                "write access, or name another folder",
            ) from None


def remove_unpublished(plan: LaunchPlan, fence: Fence) -> None:
    """Deletes what earlier attempts exported and did not live to publish."""
    fence.check()
    for output in plan.spec.outputs:
        for attempt in range(1, plan.attempt):
            folder = export_folder(plan, output.uri, attempt=attempt)
            if folder.exists():
                discard(folder)
