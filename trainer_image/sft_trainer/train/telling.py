"""What a run says of itself: a bar or log lines, the attempt's metrics file, trackers, progress for the launcher.

Called by the loop.

Everything is told by rank 0; the others make their marks only, by which a hang is found. Nothing here changes what is
trained.
"""

import logging
from collections.abc import Mapping
from typing import Any

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.marks import Marker
from sft_trainer.progress import ProgressReporter
from sft_trainer.run import RunOptions, RunPlace, RunState
from sft_trainer.tracking.run import EVALUATION_LOSS, TrackedRun
from sft_trainer.tracking.trackers import Trackers
from sft_trainer.train.flops import ModelFlops, peak_flops, speed_reached
from sft_trainer.train.memory import memory_line, peak_memory
from sft_trainer.train.metrics import MetricsLog, finite_or_none, last_steps_before
from sft_trainer.train.pace import Pace
from sft_trainer.train.queued import QueuedStep
from sft_trainer.train.schedule import learning_rate, warmup_steps
from sft_trainer.train.terminal_bar import terminal_bar
from sft_trainer.train.world import World
from sftjob.base import utc_now
from sftjob.manifest import EvaluationRecord
from sftjob.memory import MemoryEstimate
from sftjob.progress import Progress, Stage
from sftjob.progress_words import progress_line
from sftjob.words import counted

log = logging.getLogger(__name__)


class RunTeller:
    def __init__(self, place: RunPlace, *, world: World, stream: BatchStream, precision: str) -> None:
        self._world, self._stream, self._fence = world, stream, place.fence
        self._marker = Marker(place.scratch, world.rank) if place.scratch else None
        self._reporter = ProgressReporter(place.scratch) if place.scratch and world.is_first else None
        self._latest = Progress(attempt=place.fence.attempt, stage=Stage.STARTING, reported_at=utc_now())
        self._metrics = MetricsLog(place.fence.storage, place.fence.attempt) if world.is_first else None
        self._tracking = place.tracking
        self._trackers: Trackers | None = None
        self._bar = terminal_bar() if world.is_first else None
        self._peak = peak_flops(world.device, precision=precision)
        self.flops: ModelFlops | None = None
        """Of the model, once it is built."""
        self._pace = Pace()
        self.save_stall_seconds = 0.0
        """That training stood for saves since the last step was told."""

    def start(
        self,
        options: RunOptions,
        state: RunState,
        *,
        total_steps: int,
        micro_batch_tokens: int | None,
        memory: MemoryEstimate,
    ) -> None:
        """All is loaded: where the run goes on, and what a step of it is."""
        batch, ranks = options.global_batch_size, self._world.size
        log.info(
            "global batch %s = %s x %s of 1 pack%s",
            counted(batch, "pack"),
            counted(ranks, "rank"),
            counted(batch // ranks, "accumulation step"),
            f", each in parts of at most {micro_batch_tokens} tokens" if micro_batch_tokens else "",
        )
        log.info("%s", memory_line(memory))
        log.info(
            "%d steps, %s from step %d", total_steps, "resuming" if state.resumed_from else "starting", state.last_step
        )
        warmup = warmup_steps(options.lr_cfg, total_steps=total_steps)
        if warmup > total_steps:
            log.warning(
                "the warm-up of %d steps is longer than the run: the learning rate rises to %.3g, never to its peak of "
                "%.3g; lower lrSchedule.warmupRatio",
                warmup,
                learning_rate(options.lr_cfg, peak=options.optim_cfg.lr, step=total_steps, total_steps=total_steps),
                options.optim_cfg.lr,
            )
        self.progress(
            stage=Stage.TRAINING,
            detail=None,
            step=state.last_step,
            total_steps=total_steps,
            resumed_from=state.resumed_from,
            saved_step=state.saved_step,
            skipped_steps=state.skipped_steps,
            micro_batch_tokens=micro_batch_tokens,
        )
        if state.evaluation:
            self.evaluated(state.evaluation)
        if self._world.is_first:
            config = options.to_json_dict() | {"ranks": ranks, "totalSteps": total_steps}
            self._trackers = self._opened_trackers(resumed_from=state.last_step, config=config)

    def _opened_trackers(self, *, resumed_from: int, config: Mapping[str, Any]) -> Trackers:
        """Once it is known where the run goes on. Only they may fail in silence: the metrics file has all."""
        storage, attempt = self._fence.storage, self._fence.attempt
        run = TrackedRun(
            id=self._tracking.run_id,
            name=self._tracking.run_name,
            storage=storage,
            attempt=attempt,
            resumed_from=resumed_from,
            told_before=last_steps_before(storage, attempt),
            config=config,
        )
        return Trackers(self._tracking.report_to, run)

    def _track(self, step: int, values: Mapping[str, float | None]) -> None:
        if self._trackers:
            self._trackers.log(step, {tag: value for tag, value in values.items() if value is not None})

    def mark(self, stage: Stage | None = None, *, step: int | None = None) -> None:
        """On all ranks alike, wherever one might stay: a rank is still there."""
        if self._marker:
            self._marker.mark(stage, step=step)

    def progress(self, **changes: Any) -> None:
        if "stage" in changes or "detail" in changes:
            self.mark(changes.get("stage"), step=changes.get("step"))
        self._latest = self._latest.model_copy(update=changes)
        if self._bar:
            self._bar.show(self._latest)
        if self._reporter:
            self._reporter.report(**changes)

    def step(
        self,
        queued: QueuedStep,
        *,
        loss: float,
        grad_norm: float,
        seconds: float,
        total_steps: int,
        skipped_steps: int,
    ) -> None:
        if not self._metrics:
            self.mark(step=queued.step)
            return
        step, tokens, epoch = queued.step, self._stream.tokens(queued.step), self._stream.epoch(queued.step)
        speed = tokens / seconds
        reached = {}
        if self.flops:
            lengths = self._stream.document_lengths(step)
            needed = self.flops.of_documents(lengths, trained_tokens=queued.trained_tokens)
            reached = speed_reached(needed / seconds / self._world.size, peak=self._peak)
        line = {
            "step": step,
            "epoch": epoch,
            "loss": finite_or_none(loss),
            "lr": queued.rate,
            "grad_norm": finite_or_none(grad_norm),
            "skipped_steps": skipped_steps,
            "tokens": tokens,
            "trained_tokens": queued.trained_tokens,
            "micro_batches": queued.micro_batches,
            "tokens_per_second": round(speed, 1),
            "step_seconds": round(seconds, 4),
            "save_stall_seconds": round(self.save_stall_seconds, 4),
            "data_seconds": round(queued.data_seconds, 4),
            "memory_bytes": peak_memory(self._world.device),
            **reached,
        }
        self._metrics.write({**line, "samples": self._stream.sample_ids(step)})
        self._track(step, {f"train/{name}": value for name, value in line.items() if name != "step"})
        self.save_stall_seconds = 0.0
        self.progress(
            stage=Stage.TRAINING,
            detail=None,
            step=step,
            epoch=round(epoch, 4),
            loss=finite_or_none(round(loss, 6)),
            learning_rate=queued.rate,
            grad_norm=finite_or_none(round(grad_norm, 6)),
            skipped_steps=skipped_steps,
            tokens_per_second=round(speed, 1),
            mfu=reached.get("mfu"),
            data_wait=round(queued.data_seconds / seconds, 4),
            memory_bytes=line["memory_bytes"],
            eta_seconds=round((total_steps - step) * self._pace.add(seconds)),
        )
        if not self._bar:
            log.info("%s", progress_line(self._latest))

    def evaluation(self, record: EvaluationRecord, *, total_steps: int) -> None:
        if self._metrics:
            self._metrics.write({"step": record.step, "eval_loss": record.loss, "best_step": record.best_step})
        self._track(record.step, {EVALUATION_LOSS: record.loss})
        log.info(
            "step %d evaluation loss %.4f (lowest %.4f, step %d)",
            record.step,
            record.loss,
            record.best_loss,
            record.best_step,
        )
        self.progress(stage=Stage.TRAINING, detail=None, total_steps=total_steps)
        self.evaluated(record)

    def evaluated(self, record: EvaluationRecord) -> None:
        """The newest evaluation, of this attempt or of an earlier one."""
        self.progress(
            eval_loss=round(record.loss, 6), best_eval_loss=round(record.best_loss, 6), best_step=record.best_step
        )

    def close(self, *, at_the_end: bool) -> None:
        if self._bar:
            self._bar.close()
        if self._reporter:
            self._reporter.close()
        if self._metrics:
            self._metrics.close()
        if self._trackers:
            self._trackers.close(at_the_end=at_the_end)
