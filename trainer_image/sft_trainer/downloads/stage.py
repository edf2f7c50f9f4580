"""The download stage: one process a node, before anything is read. Called by `sft_trainer.child`.

Where the nodes share the job's storage, node 0 downloads into it and the others wait until it is there. Where that is
in a bucket, each downloads into its own copy: what node 0 has looked up.
"""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from sft_trainer.downloads.sources import BucketSource, HubSource, Revision, Source, source_of, sources_of
from sft_trainer.downloads.transfer import is_whole
from sft_trainer.hub import download as hub
from sft_trainer.launcher.placement import Placement
from sft_trainer.progress import ProgressReporter
from sft_trainer.report import Report, write_report
from sft_trainer.s3 import download as s3
from sft_trainer.storage import fence
from sft_trainer.task import RankTask
from sftjob.failure import JobFailure, Reason, exit_code
from sftjob.plan import LaunchPlan, PinnedObject
from sftjob.progress import Resolved, Stage
from sftjob.sources import DatasetSpec, UriSource

_LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


def download_stage(scratch: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s download %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    disable_progress_bars()
    plan, reporter = RankTask.read(scratch).plan, ProgressReporter(scratch)
    try:
        if Placement.from_environment(os.environ).node_rank == 0:
            _download_all(plan, reporter, *_pins(plan, reporter))
        elif fence.Fence.of(plan).remote:
            _download_all(plan, reporter, *_pins_of_node_zero(plan, reporter))
        else:
            _wait_for_all(plan, reporter)
        report = Report(reason=Reason.SUCCEEDED)
    except JobFailure as failure:
        report = Report(reason=failure.reason, message=failure.message)
    finally:
        reporter.close()
    write_report(scratch, "download", report)
    return exit_code(report.reason)


_Pins = tuple[Resolved, dict[str, list[PinnedObject]]]


def _pins(plan: LaunchPlan, reporter: ProgressReporter) -> _Pins:
    """Raises JobFailure."""
    pins = fence.pins_before(plan)
    if pins is None:
        pins = _looked_up(plan, sources_of(plan), reporter)
        fence.record_pins(plan, *pins)
    return pins


def _pins_of_node_zero(plan: LaunchPlan, reporter: ProgressReporter) -> _Pins:
    """As `_wait_for_all`."""
    while (pins := fence.pins_before(plan)) is None:
        _tell(reporter, sources_of(plan)[0], "node 0 looks up what is downloaded")
        time.sleep(_LOOK_SECONDS)
    return pins


def _download_all(
    plan: LaunchPlan, reporter: ProgressReporter, resolved: Resolved, objects: dict[str, list[PinnedObject]]
) -> None:
    """Raises JobFailure."""
    reporter.report(resolved=resolved)
    commits = _commits(plan, resolved)
    for source in sources_of(plan):
        if isinstance(source, HubSource):
            hub.download(source, commits[source.of], on_detail=_teller(reporter, source))
        else:
            s3.download(source, objects[source.uri], on_detail=_teller(reporter, source))
        log.info("%s lies in %s", source.uri, source.local)


def _wait_for_all(plan: LaunchPlan, reporter: ProgressReporter) -> None:
    """For as long as it takes: where node 0 fails, the attempt is ended, and this process with it."""
    for source in sources_of(plan):
        while not is_whole(source):
            _tell(reporter, source, f"{source.uri}: node 0 downloads it")
            time.sleep(_LOOK_SECONDS)


def _tell(reporter: ProgressReporter, source: Source, detail: str) -> None:
    stage = Stage.DOWNLOADING_DATA if source.kind == "dataset" else Stage.DOWNLOADING_MODEL
    reporter.report(stage=stage, detail=detail)


def _teller(reporter: ProgressReporter, source: Source) -> Callable[[str], None]:
    return partial(_tell, reporter, source)


def _looked_up(plan: LaunchPlan, sources: list[Source], reporter: ProgressReporter) -> _Pins:
    """What the revisions stand for now, each of a repository asked for once, and what lies in buckets.

    Raises JobFailure.
    """
    commits: dict[Revision, str] = {}
    objects: dict[str, list[PinnedObject]] = {}
    for source in sources:
        if isinstance(source, BucketSource):
            objects[source.uri] = s3.pin(source, on_detail=_teller(reporter, source))
        elif source.of not in commits:
            commits[source.of] = hub.commit_of(source, on_detail=_teller(reporter, source))

    def revision(spec: UriSource | DatasetSpec | None) -> str | None:
        source = source_of(plan, spec)
        if isinstance(source, BucketSource):
            return s3.revision_of(objects[source.uri])
        return commits[source.of] if source else None

    model, tokenizer, *data = [revision(spec) for spec in _specs(plan)]
    resolved = Resolved(
        model_revision=model,
        tokenizer_revision=tokenizer,
        data_revisions=[one or "" for one in data] if any(data) else [],
    )
    return resolved, objects


def _commits(plan: LaunchPlan, resolved: Resolved) -> dict[Revision, str]:
    recorded = [resolved.model_revision, resolved.tokenizer_revision, *resolved.data_revisions]
    # Of data there are none where no dataset is of a hub or in a bucket.
    pairs = [(source_of(plan, spec), commit) for spec, commit in zip(_specs(plan), recorded, strict=False)]
    return {source.of: commit for source, commit in pairs if isinstance(source, HubSource) and commit}


def _specs(plan: LaunchPlan) -> list[UriSource | DatasetSpec | None]:
    """In the order of Resolved."""
    return [plan.spec.model.load_from, plan.spec.model.tokenizer, *plan.spec.data.sources.values()]
