"""One node's part of one attempt, stage by stage: fence, prepare, torchrun, publish, and the outcome.

A pre-flight stops once it has prepared.

Called by `__main__` with the plan; every way out is an Outcome, in the termination message and in storage.
"""

import contextlib
import logging
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from sft_trainer.downloads.sources import sources_of
from sft_trainer.launcher.cause import Cause, cause_of_failure, hang, stage_failure
from sft_trainer.launcher.children import Children
from sft_trainer.launcher.exits import RankExits, TorchrunTask, log_tail, rank_exits_path, torchrun_logs
from sft_trainer.launcher.kubeflow import KubeflowEndpoint
from sft_trainer.launcher.placement import Placement, wait_for_name
from sft_trainer.launcher.publish import finished_before, publish_outputs
from sft_trainer.launcher.resources import available_cpus, compiler_environment, rank_environment
from sft_trainer.launcher.script import refuse_unusable_script, script_command, script_environment
from sft_trainer.launcher.serve import serve_progress
from sft_trainer.launcher.watch import RankWatch
from sft_trainer.progress import read_progress, write_progress, write_stage
from sft_trainer.report import Report, read_reports
from sft_trainer.stop import StopSignal
from sft_trainer.storage import fence, nodes
from sft_trainer.storage.checkpoints import newest_step
from sft_trainer.storage.exports import refuse_unwritable_outputs, remove_unpublished
from sft_trainer.storage.fence import Fence
from sft_trainer.storage.folders import write_atomically
from sft_trainer.task import RankTask
from sftjob.base import utc_now
from sftjob.failure import JobFailure, Reason, exit_code
from sftjob.outcome import Artifact, Outcome
from sftjob.plan import LaunchPlan
from sftjob.progress import Progress, Stage

log = logging.getLogger("sft_trainer.launcher")


def run_attempt(plan: LaunchPlan, placement: Placement, stop: StopSignal) -> Outcome:
    """Never raises for anything that happens to a run; what it raises is a fault of the launcher itself."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s launcher %(message)s", datefmt="%H:%M:%S")
    started_at = utc_now()
    grace_seconds = plan.spec.run_policy.termination_grace_period_seconds
    children = Children(grace_seconds=grace_seconds, scratch=placement.scratch, stop=stop)
    first = Progress(attempt=plan.attempt, stage=Stage.FENCING, pod_uid=placement.pod_uid, reported_at=utc_now())
    write_progress(placement.scratch, first)
    server = serve_progress(placement.scratch, address=placement.serve_address)
    host, port = server.server_address[:2]
    (placement.scratch / "address").write_text(f"{host!s}:{port}")
    entered = False
    artifacts: list[Artifact] = []
    try:
        log.info("attempt %d of %s/%s, node %d", plan.attempt, plan.job.namespace, plan.job.name, placement.node_rank)
        gate = fence.enter(plan, node_rank=placement.node_rank, pod_uid=placement.pod_uid)
        entered = True
        if placement.node_rank == 0:
            write_progress(placement.scratch, first.model_copy(update={"end_before": fence.end_before(plan)}))
            remove_unpublished(plan, gate)
            refuse_unwritable_outputs(plan)
        else:
            wait_for_name(placement.master_address, is_stopped=lambda: children.stopping)
            if children.stopping:
                raise JobFailure(Reason.PREEMPTED, "stopped before node 0 started")
            nodes.wait_for_node_zero(plan)
        if gate.remote and not plan.prepare_only:
            _fetch_checkpoint(plan, gate, placement, children)
        finished = finished_before(plan)
        if finished:
            log.info("an earlier attempt has trained and published everything")
            return _end(plan, placement, started_at, Cause(Reason.SUCCEEDED, ""), finished.artifacts, finished.report)
        cause = _prepare(plan, placement, children) or _train(plan, placement, children)
        if cause.reason is Reason.SUCCEEDED and placement.node_rank == 0:
            write_stage(placement.scratch, Stage.PUBLISHING)
            artifacts = publish_outputs(plan, gate, on_detail=_teller(Stage.PUBLISHING, placement, children))
    except JobFailure as failure:
        cause = Cause(failure.reason, failure.message)
    except Exception:
        cause = Cause(Reason.LAUNCHER_FAILED, traceback.format_exc(limit=-3))
    finally:
        server.shutdown()
        server.server_close()
    return _end(plan, placement, started_at, cause, artifacts, entered=entered)


def _fetch_checkpoint(plan: LaunchPlan, gate: Fence, placement: Placement, children: Children) -> None:
    """Of a storage in a bucket. Node 0 chooses, so that a checkpoint which only one node sees as bad does not split the
    ranks. Raises JobFailure."""
    tell = _teller(Stage.LOADING_CHECKPOINT, placement, children)
    if placement.node_rank == 0:
        step = gate.remote.fetch_newest(gate.storage, attempt=plan.attempt, on_detail=tell)
        nodes.tell_chosen(plan, step)
    else:
        step = nodes.wait_for_chosen(plan, on_detail=tell)
        gate.remote.fetch_chosen(gate.storage, step, attempt=plan.attempt, on_detail=tell)


def _teller(stage: Stage, placement: Placement, children: Children) -> Callable[[str], None]:
    """Of a stage in which the launcher itself moves files: where it is told to stop, it does so at the next part."""

    def tell(detail: str) -> None:
        if children.stopping:
            raise JobFailure(Reason.PREEMPTED, f"stopped in stage {stage}, at {detail}")
        write_stage(placement.scratch, stage, detail)

    return tell


def _train(plan: LaunchPlan, placement: Placement, children: Children) -> Cause:
    environment = rank_environment(processes_per_node=plan.spec.compute.processes_per_node, cpus=available_cpus())
    environment |= compiler_environment(Path(plan.storage))
    log.info("environment of ranks: %s", " ".join(f"{name}={value}" for name, value in environment.items()))
    script = plan.spec.script
    if script:
        environment |= script_environment(plan, placement.scratch)

    write_stage(placement.scratch, Stage.RUNNING_SCRIPT if script else Stage.PREPARING_DATA)
    torchrun = TorchrunTask(
        parent_pid=os.getpid(),
        nodes=plan.spec.compute.nodes,
        processes_per_node=plan.spec.compute.processes_per_node,
        node_rank=placement.node_rank,
        master_address=placement.master_address,
        master_port=placement.master_port,
        run_id=f"{plan.job.uid}-{plan.attempt}",
        scratch=str(placement.scratch),
        shutdown_seconds=children.shutdown_seconds,
        script=script_command(plan, script) if script else [],
    )
    with KubeflowEndpoint(placement.scratch) as endpoint:
        environment |= endpoint.environment
        watch = RankWatch(plan, placement, children)
        code = children.run(
            "sft_trainer.launcher.torchrun", [torchrun.to_json()], environment=environment, meanwhile=watch.look
        )
    if not script and (cause := _failure_of("prepare", Stage.PREPARING_DATA, code, placement, children)):
        return cause
    # A script may exit 0 though its Trainer has failed.
    if code == 0 and all(report.reason is Reason.SUCCEEDED for report in _rank_reports(placement.scratch).values()):
        return Cause(Reason.SUCCEEDED, "")
    if watch.is_hang:
        return hang(watch.standstill)
    exits = RankExits(exit_codes={})
    # Empty where a disk had no room for it.
    with contextlib.suppress(FileNotFoundError, ValidationError):
        exits = RankExits.from_json(rank_exits_path(placement.scratch).read_text())
    cause = cause_of_failure(
        exit_codes=exits.exit_codes,
        reports=_rank_reports(placement.scratch),
        stopping=children.stopping,
        torchrun_code=code,
    )
    # Another node's launcher, or whoever stops this one, may have ended what stood still here too.
    return replace(cause, standstill=watch.standstill)


def _prepare(plan: LaunchPlan, placement: Placement, children: Children) -> Cause | None:
    """None: all is ready for the ranks, and they are to run. A Trainer in a script prepares its own."""
    RankTask(plan=plan).write(placement.scratch)
    if plan.spec.script:
        refuse_unusable_script(plan, plan.spec.script)
    for name, stage in _stages_before_ranks(plan).items():
        write_stage(placement.scratch, stage)
        code = children.run("sft_trainer.child", [name, str(os.getpid()), str(placement.scratch)], environment={})
        if cause := _failure_of(name, stage, code, placement, children):
            return cause
    if children.stopping:
        return Cause(Reason.PREEMPTED, "stopped before training")
    return Cause(Reason.PREPARED, "found storage, model and data ready") if plan.prepare_only else None


def _stages_before_ranks(plan: LaunchPlan) -> dict[str, Stage]:
    """Each in a process of its own, by the name that `sft_trainer.child` knows it by.

    Where ranks follow, torchrun's process runs the prepare stage: with the imports that it does for them.
    """
    if plan.spec.script:
        return {}
    downloads = {"download": Stage.DOWNLOADING_MODEL} if sources_of(plan) else {}
    return downloads | ({"prepare": Stage.PREPARING_DATA} if plan.prepare_only else {})


def _failure_of(name: str, stage: Stage, code: int, placement: Placement, children: Children) -> Cause | None:
    """`code` is that of the process that ran the stage, and maybe ranks after it."""
    report = read_reports(placement.scratch).get(name)
    if code == 0 or (report and report.reason is Reason.SUCCEEDED):
        return None
    if report:
        return Cause(report.reason, report.message)
    if children.stopping:
        return Cause(Reason.PREEMPTED, f"stopped before training, in stage {stage}")
    return stage_failure(stage, code)


def _rank_reports(scratch: Path) -> dict[int, Report]:
    return {
        int(who.removeprefix("rank-")): report
        for who, report in read_reports(scratch).items()
        if who.startswith("rank-")
    }


def _end(
    plan: LaunchPlan,
    placement: Placement,
    started_at: datetime,
    cause: Cause,
    artifacts: list[Artifact],
    finished: Report | None = None,
    *,
    entered: bool = True,
) -> Outcome:
    """Gathers what is known into the outcome, and writes it where it can be found."""
    reports = _rank_reports(placement.scratch)
    first_rank = placement.node_rank * plan.spec.compute.processes_per_node
    prepared = read_reports(placement.scratch).get("prepare")
    progress = read_progress(placement.scratch)
    # Rank 0 of the world lives on node 0 only; the first rank of another node knows as much.
    first = finished or (reports[min(reports)] if reports else None)
    if len(reports) == plan.spec.compute.processes_per_node:
        # A script may have gone on after its Trainer had saved all.
        saved = all(report.saved or report.reason is Reason.SUCCEEDED for report in reports.values())
    else:
        saved = progress is not None and progress.step == (progress.saved_step or 0)
    if plan.spec.script and not reports:
        saved = None  # what it keeps is its own
    last_step = first.last_step if first else progress and progress.step
    saved_step = first.saved_step if first else progress and progress.saved_step
    stored = newest_step(Path(plan.storage)) if entered else None
    if stored is not None and stored > (saved_step or 0):
        # Killed between the publish and the word of it: storage is right.
        last_step, saved_step = max(stored, last_step or 0), stored
    final_digest = first.final_digest if first and cause.reason is Reason.SUCCEEDED else None
    outcome = Outcome(
        attempt=plan.attempt,
        node_rank=placement.node_rank,
        reason=cause.reason,
        exit_code=exit_code(cause.reason),
        message=cause.message,
        rank=cause.rank,
        signal=cause.signal,
        rank_exit_code=cause.rank_exit_code,
        standstill=cause.standstill,
        resumed_from=first.resumed_from if first else progress and progress.resumed_from,
        last_step=last_step,
        saved_step=saved_step,
        saved=saved if cause.reason is Reason.PREEMPTED else None,
        skipped_checkpoints=progress.skipped_checkpoints if progress else [],
        final_digest=final_digest,
        script_completed=plan.spec.script is not None and cause.reason is Reason.SUCCEEDED and final_digest is None,
        artifacts=artifacts,
        data=(first.data if first else None) or (prepared.data if prepared else None),
        progress=progress and progress.model_copy(update={"data": None, "end_before": None}),
        log_tail="" if cause.rank is None else log_tail(placement.scratch, cause.rank - first_rank),
        started_at=started_at,
        ended_at=utc_now(),
    )
    _leave_message(placement.termination_message, outcome.to_message())
    if entered:
        # The termination message has it too, where storage is what has failed.
        with contextlib.suppress(JobFailure, OSError):
            fence.leave(plan, outcome, pod_uid=placement.pod_uid)
    shutil.rmtree(placement.scratch / "tmp", ignore_errors=True)
    shutil.rmtree(torchrun_logs(placement.scratch), ignore_errors=True)
    log.info("%s (exit code %s) %s", outcome.reason, outcome.exit_code, outcome.message)
    return outcome


def _leave_message(path: Path, message: str) -> None:
    """In a pod the file is there, mounted on its own: it can be written, but not replaced."""
    if path.exists():
        path.write_text(message)
    else:
        write_atomically(path, message)
