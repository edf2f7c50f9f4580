"""The download stage: one process a node, before anything is read. Called by `sft_trainer.child`.

Node 0 downloads into the job's storage, which all nodes share; the others wait until it is there.
"""

import logging
import os
import time
from functools import partial
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from sft_trainer.hub.download import commit_of, download, is_whole
from sft_trainer.hub.sources import HubSource, Revision, hub_source, hub_sources
from sft_trainer.launcher.placement import Placement
from sft_trainer.progress import ProgressReporter
from sft_trainer.report import Report, write_report
from sft_trainer.storage import fence
from sft_trainer.task import RankTask
from sftjob.failure import JobFailure, Reason, exit_code
from sftjob.plan import LaunchPlan
from sftjob.progress import Resolved, Stage
from sftjob.spec import DatasetSpec, UriSource

_LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


def download_stage(scratch: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s download %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    disable_progress_bars()
    plan, reporter = RankTask.read(scratch).plan, ProgressReporter(scratch)
    try:
        if Placement.from_environment(os.environ).node_rank == 0:
            _download_all(plan, reporter)
        else:
            _wait_for_all(plan, reporter)
        report = Report(reason=Reason.SUCCEEDED)
    except JobFailure as failure:
        report = Report(reason=failure.reason, message=failure.message)
    finally:
        reporter.close()
    write_report(scratch, "download", report)
    return exit_code(report.reason)


def _download_all(plan: LaunchPlan, reporter: ProgressReporter) -> None:
    """Raises JobFailure."""
    sources = hub_sources(plan)
    resolved = fence.resolved_before(plan)
    if resolved is None:
        resolved = _looked_up(plan, sources, reporter)
        fence.record_resolved(plan, resolved)
    reporter.report(resolved=resolved)
    commits = _commits(plan, resolved)
    for source in sources:
        download(source, commits[source.of], on_detail=partial(_tell, reporter, source))
        log.info("%s at %s lies in %s", source.uri, commits[source.of], source.local)


def _wait_for_all(plan: LaunchPlan, reporter: ProgressReporter) -> None:
    """For as long as it takes: where node 0 fails, the attempt is ended, and this process with it."""
    for source in hub_sources(plan):
        while not is_whole(source):
            _tell(reporter, source, f"{source.uri}: node 0 downloads it")
            time.sleep(_LOOK_SECONDS)


def _tell(reporter: ProgressReporter, source: HubSource, detail: str) -> None:
    stage = Stage.DOWNLOADING_DATA if source.kind == "dataset" else Stage.DOWNLOADING_MODEL
    reporter.report(stage=stage, detail=detail)


def _looked_up(plan: LaunchPlan, sources: list[HubSource], reporter: ProgressReporter) -> Resolved:
    """What the revisions stand for now, each of a repository asked for once. Raises JobFailure."""
    commits: dict[Revision, str] = {}
    for source in sources:
        if source.of not in commits:
            commits[source.of] = commit_of(source, on_detail=partial(_tell, reporter, source))
    model, tokenizer, *data = [(one := hub_source(plan, spec)) and commits[one.of] for spec in _specs(plan)]
    return Resolved(
        model_revision=model,
        tokenizer_revision=tokenizer,
        data_revisions=[commit or "" for commit in data] if any(data) else [],
    )


def _commits(plan: LaunchPlan, resolved: Resolved) -> dict[Revision, str]:
    recorded = [resolved.model_revision, resolved.tokenizer_revision, *resolved.data_revisions]
    # Of data there are none where no dataset is of a hub.
    pairs = [(hub_source(plan, spec), commit) for spec, commit in zip(_specs(plan), recorded, strict=False)]
    return {source.of: commit for source, commit in pairs if source and commit}


def _specs(plan: LaunchPlan) -> list[UriSource | DatasetSpec | None]:
    """In the order of Resolved."""
    return [plan.spec.model.load_from, plan.spec.model.tokenizer, *plan.spec.data.sources.values()]
