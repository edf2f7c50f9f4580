"""One pass over one job: read, observe, decide, write, act. Only in this order.

Called by a work queue in a cluster, by the loop of `sft run` on a laptop.
"""

from collections.abc import Callable
from datetime import datetime

from sft_operator.lifecycle.backend import Backend, JobKey, Store
from sft_operator.lifecycle.decide import CreateAttempt, DeleteAttempt, DeleteJob, decide
from sft_operator.lifecycle.plan import launch_plan


async def reconcile(
    key: JobKey,
    *,
    backend: Backend,
    store: Store,
    path_of: Callable[[str], str],
    clock: Callable[[], datetime],
) -> float | None:
    """Seconds until the next pass is due; None where nothing is due until something changes.

    Raises Conflict and NotNow as backend and store do.
    """
    job = await store.read(key)
    if job is None:
        return None
    decision = decide(job, await backend.observe(job), now=clock())
    if decision.status != job.status:
        job = await store.write_status(job.model_copy(update={"status": decision.status}))
    elif decision.action is not None:
        # What was read may be old, and nobody has told it so yet.
        await store.confirm(job)
    # From here on the status tells what is about to be done: a process that dies now is taken up where it stopped.
    match decision.action:
        case CreateAttempt(number):
            await backend.create(job, launch_plan(job, number, path_of=path_of))
        case DeleteAttempt(number):
            await backend.delete(job, number)
        case DeleteJob():
            await store.delete(job)
    return decision.requeue_after
