"""Where an output lies until it is published, and what earlier attempts left there.

Called by the ranks, which write, and by the launcher of node 0, which publishes.
"""

import shutil
from pathlib import Path

from sft_trainer.storage.fence import Fence
from sftjob import names
from sftjob.plan import LaunchPlan


def export_folder(plan: LaunchPlan, uri: str, *, attempt: int) -> Path:
    """Where the ranks of an attempt write an output until it is published."""
    folder = Path(plan.path(uri))
    return folder.with_name(names.temporary(folder.name, attempt=attempt))


def remove_unpublished(plan: LaunchPlan, fence: Fence) -> None:
    """Deletes what earlier attempts exported and did not live to publish."""
    fence.check()
    for output in plan.spec.outputs:
        for attempt in range(1, plan.attempt):
            folder = export_folder(plan, output.uri, attempt=attempt)
            if folder.exists():
                shutil.rmtree(folder)
