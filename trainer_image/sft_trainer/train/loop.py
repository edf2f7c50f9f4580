"""The training loop: from cached data and a model's folder to checkpoints, metrics and an exported model.

Called on every rank by `sft_trainer.rank` (under the launcher) and by `Trainer.fit` (a user's own script).
"""

import logging
import time
from collections import deque

import torch

from sft_trainer.datasets.batch import BatchStream
from sft_trainer.datasets.prepare import PreparedData
from sft_trainer.model.build import chosen_precision, compiles
from sft_trainer.run import RunOptions, RunPlace, RunState
from sft_trainer.stop import StopSignal
from sft_trainer.storage.checkpoints import amend_manifest
from sft_trainer.train.accumulate import Accumulation
from sft_trainer.train.checkpoint import get_random_state, load_weights
from sft_trainer.train.evaluation import Evaluation, following, refuse_choice_without_checkpoints
from sft_trainer.train.exports import choose_exported, write_export
from sft_trainer.train.flops import count_flops
from sft_trainer.train.ledger import Ledger, epoch_content
from sft_trainer.train.load import load
from sft_trainer.train.memory import run_memory
from sft_trainer.train.metrics import finite_or_none
from sft_trainer.train.optimizer import clip_gradients, update
from sft_trainer.train.queued import LateNumbers, QueuedStep, steps_ahead
from sft_trainer.train.save_clock import SaveClock
from sft_trainer.train.saver import CheckpointSaver
from sft_trainer.train.schedule import learning_rate
from sft_trainer.train.skip import judge_gradient, skips
from sft_trainer.train.stop import Preempted, agreed_seconds_ago, save_fits, seconds_left
from sft_trainer.train.telling import RunTeller
from sft_trainer.train.world import World
from sftjob import names
from sftjob.base import utc_now
from sftjob.failure import JobFailure, Reason
from sftjob.ledger import LedgerHead
from sftjob.manifest import CheckpointManifest
from sftjob.progress import Stage

log = logging.getLogger(__name__)


def train(
    options: RunOptions, place: RunPlace, data: PreparedData, *, world: World, stop: StopSignal, state: RunState
) -> None:
    """Trains to the end, saves and exports; `state` tells how far it came, however it ends.

    Raises Preempted after a SIGTERM to any rank, and JobFailure for all that a user can mend.
    """
    if options.evaluation:
        refuse_choice_without_checkpoints(options.evaluation, checkpoint_interval=place.checkpoint_interval)
    _Run(options, place, data, world, stop, state).to_the_end()


class _Run:
    def __init__(
        self,
        options: RunOptions,
        place: RunPlace,
        data: PreparedData,
        world: World,
        stop: StopSignal,
        state: RunState,
    ) -> None:
        self.options, self.place, self.data = options, place, data
        self.world, self.stop, self.state = world, stop, state
        self.precision = chosen_precision(options.precision, world.device)
        self.compiled = compiles(options.fsdp_cfg, world.device)
        # A compiled layer is compiled anew for each length.
        pad_to = options.dataloader_cfg.pack_max_length if self.compiled else None
        # A sample alone may be far shorter than a pack.
        pads_by_halves = options.dataloader_cfg.pack_level == "none"
        self.stream = BatchStream(
            data,
            seed=options.seed,
            global_batch_size=options.global_batch_size,
            world_size=world.size,
            rank=world.rank,
            pad_to=pad_to,
            pads_by_halves=pads_by_halves,
            total_epoch=None if options.total_step else options.total_epoch or 1,
        )
        self.total_steps = options.total_step or self.stream.total_steps(options.total_epoch or 1)
        self.evaluation = None
        if options.evaluation and data.evaluation:
            self.evaluation = Evaluation(
                options.evaluation, data.evaluation, world=world, pad_to=pad_to, pads_by_halves=pads_by_halves
            )
        self.teller = RunTeller(place, world=world, stream=self.stream, precision=self.precision)
        self.unread: deque[QueuedStep] = deque()
        self.read_at = 0.0

    def to_the_end(self) -> None:
        at_the_end = False
        try:
            self._load()
            if self._evaluate_if_due():
                self._amend_checkpoint()
            while self.state.last_step < self.total_steps:
                step = self.state.last_step + 1
                self._train_step(step)
                self._evaluate_if_due()
                if self._is_to_be_saved(step):
                    # Nothing is left to train beside the last save.
                    self._save(beside=self.place.save_mode == "async" and step < self.total_steps)
                elif self.clock.is_due():
                    self._save_by_the_clock()
                else:
                    self.saver.settle(wait_seconds=0)
            self.saver.release()
            self._export()
            at_the_end = True
        finally:
            self.teller.close(at_the_end=at_the_end)

    def _load(self) -> None:
        options, place, world, state = self.options, self.place, self.world, self.state
        self.teller.progress(stage=Stage.LOADING_MODEL, detail=options.load_from, total_steps=self.total_steps)
        loaded = load(options, place, self.data, world=world, precision=self.precision, teller=self.teller)
        self.model, self.optimizer, self.config_digest = loaded.model, loaded.optimizer, loaded.config_digest
        self.teller.flops = count_flops(self.model)
        if loaded.resumed is not None:
            self._take_up(loaded.resumed)
        self.random_state = get_random_state(world.device)
        self.ledger = Ledger(
            place.fence.storage,
            place.fence.attempt,
            rank=world.rank,
            head=LedgerHead(
                world_size=world.size,
                resumed_from=state.last_step,
                total_epoch=None if options.total_step else options.total_epoch or 1,
                total_steps=options.total_step or self.stream.total_steps(options.total_epoch or 1),
                content=epoch_content(self.data.packs) if world.is_first else None,
            ),
        )
        self.accumulation = Accumulation(
            self.model,
            stream=self.stream,
            world=world,
            ledger=self.ledger,
            teller=self.teller,
            halvings=place.shortages + (loaded.resumed.halvings if loaded.resumed else 0),
            resumes=place.resume,
        )
        self.saver = CheckpointSaver(
            self.model,
            self.optimizer,
            world=world,
            fence=place.fence,
            keep_last=place.keep_last,
            sync_ledger=self.ledger.sync,
            fits_again=self._save_fits_again,
            state=state,
            teller=self.teller,
        )
        self.teller.start(
            options,
            state,
            total_steps=self.total_steps,
            micro_batch_tokens=self.accumulation.micro_batch_tokens,
            memory=run_memory(self.model, options, world=world, precision=self.precision),
        )
        self.clock = SaveClock(world, runs=place.saves_by_clock and place.checkpoint_interval is None)

    def _take_up(self, manifest: CheckpointManifest) -> None:
        """Goes on from the state after the checkpoint's step, which is the run's last one where it says so."""
        state = self.state
        state.resumed_from = state.last_step = state.saved_step = manifest.step
        state.loss, state.evaluation = manifest.loss, manifest.evaluation
        state.skipped_steps, state.non_finite_steps = manifest.skipped_steps, manifest.non_finite_steps
        if manifest.step == manifest.total_steps:
            self.total_steps = manifest.total_steps
            state.final_digest = manifest.digest()

    def _train_step(self, step: int) -> None:
        began = time.perf_counter()
        rate = learning_rate(
            self.options.lr_cfg, peak=self.options.optim_cfg.lr, step=step, total_steps=self.total_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        done = self.accumulation.add_gradient(step, random_state=self.random_state, between=self._stop_if_agreed)
        grad_norm = clip_gradients(self.model, max_norm=self.options.optim_cfg.max_grad_norm)
        # The norm is of all ranks' gradients: each decides alike.
        skipped = skips(grad_norm, threshold=self.options.optim_cfg.skip_grad_norm_threshold)
        update(self.optimizer, skipped=skipped)
        self.optimizer.zero_grad(set_to_none=True)
        self.unread.append(
            QueuedStep(
                step=step,
                rate=rate,
                trained_tokens=self.stream.trained_tokens(step),
                micro_batches=done.micro_batches,
                began=began,
                data_seconds=done.data_seconds,
                host_seconds=time.perf_counter() - began,
                numbers=LateNumbers(torch.stack([done.loss_sum, grad_norm, skipped])),
            )
        )
        self._read_steps(but=steps_ahead(self.world.device))
        self.random_state = get_random_state(self.world.device)
        self.state.last_step = step
        self.ledger.close_step(step)

    def _read_steps(self, *, but: int = 0) -> None:
        """What the device has computed of the queued steps, save the newest `but`. Called by all ranks alike."""
        while len(self.unread) > but:
            queued = self.unread.popleft()
            loss_sum, grad_norm, skipped = queued.numbers.read()
            self._count_skip(queued.step, grad_norm, skipped=bool(skipped))
            mean_loss = self.world.sum(loss_sum) / max(1, queued.trained_tokens)
            self.state.loss = finite_or_none(mean_loss)
            began, self.read_at = max(queued.began, self.read_at), time.perf_counter()
            self.teller.step(
                queued,
                loss=mean_loss,
                grad_norm=grad_norm,
                seconds=max(self.read_at - began, queued.host_seconds),
                total_steps=self.total_steps,
                skipped_steps=self.state.skipped_steps,
            )

    def _count_skip(self, step: int, grad_norm: float, *, skipped: bool) -> None:
        verdict = judge_gradient(
            grad_norm,
            skipped=skipped,
            threshold=self.options.optim_cfg.skip_grad_norm_threshold,
            non_finite_before=self.state.non_finite_steps,
        )
        if verdict.is_fatal:
            raise JobFailure(
                Reason.NON_FINITE_GRADIENT,
                f"step {step}: the gradient norm is {grad_norm}, as in the {verdict.non_finite_steps - 1} steps "
                f"before, which were skipped (samples {self.stream.sample_ids(step)}); lower "
                "spec.training.optimizer.lr, or look at these samples",
            )
        self.state.non_finite_steps = verdict.non_finite_steps
        if verdict.skips:
            self.state.skipped_steps += 1
            log.warning("step %d is skipped: %s", step, verdict.why)

    def _evaluate_if_due(self) -> bool:
        """May make this step the run's last one."""
        step, record = self.state.last_step, self.state.evaluation
        if not self.evaluation or not self.evaluation.is_due(step, total_steps=self.total_steps, record=record):
            return False
        self._read_steps()
        self.teller.progress(stage=Stage.EVALUATING, detail=None)
        loss = self.evaluation.mean_loss(
            self.model, halvings=self.accumulation.halvings, between_batches=self._between_evaluated
        )
        record = self.state.evaluation = following(record, step=step, loss=loss)
        if self.evaluation.ends_training(record) and step < self.total_steps:
            log.info("no better evaluation loss in %d evaluations: the run ends here", record.without_improvement)
            self.total_steps = step
        self.teller.evaluation(record, total_steps=self.total_steps)
        return True

    def _between_evaluated(self, detail: str) -> None:
        # A silent stage would be taken for a hang where it is long.
        self.teller.progress(detail=detail)
        self._stop_if_agreed()

    def _amend_checkpoint(self) -> None:
        """A stop had saved this step before its evaluation was done."""
        changes = {"evaluation": self.state.evaluation, "total_steps": self.total_steps}
        fence, step = self.place.fence, self.state.last_step
        manifest = self.world.from_first(lambda: amend_manifest(fence, step, changes))
        if step == self.total_steps:
            self.state.final_digest = manifest.digest()

    def _stop_if_agreed(self) -> None:
        """At a micro-batch boundary: the unfinished step is dropped, the last finished one saved if there is time."""
        seconds_ago = agreed_seconds_ago(self.stop, self.world)
        if seconds_ago is None:
            return
        self._read_steps()
        state, grace_seconds = self.state, self.place.grace_seconds
        began = time.perf_counter()
        settled = self.saver.settle(wait_seconds=seconds_left(seconds_ago=seconds_ago, grace_seconds=grace_seconds))
        seconds_ago += self.world.max(time.perf_counter() - began)
        if (
            settled
            and state.last_step > (state.saved_step or 0)
            and save_fits(seconds_ago=seconds_ago, save_seconds=state.save_seconds, grace_seconds=grace_seconds)
        ):
            self._save(beside=False)
        raise Preempted(saved=state.last_step == (state.saved_step or 0))

    def _save_fits_again(self) -> bool:
        """Where a stop has come, another one after a save that has lacked room. Not where nobody knows how long it
        takes: what makes room for it may be the only checkpoint."""
        seconds_ago, save_seconds = agreed_seconds_ago(self.stop, self.world), self.state.save_seconds
        return seconds_ago is None or (
            save_seconds > 0
            and save_fits(seconds_ago=seconds_ago, save_seconds=save_seconds, grace_seconds=self.place.grace_seconds)
        )

    def _save_by_the_clock(self) -> None:
        """Between the steps: beside them, lines of ledger and metrics would meet a volume that it has filled."""
        try:
            self._save(beside=False, by_clock=True)
        except JobFailure as failure:
            # The same on every rank.
            if failure.reason is not Reason.STORAGE_FULL:
                raise
            # Another half an hour makes no room, and each try stops training.
            self.clock.stop()
            if self.world.is_first:
                log.warning("%s; training goes on, and saves at a stop and at the end only", failure.message)
            self.teller.progress(stage=Stage.TRAINING, detail=None)

    def _is_to_be_saved(self, step: int) -> bool:
        """In an undisturbed run, however fast it is."""
        interval = self.place.checkpoint_interval
        return step == self.total_steps or bool(interval and step % interval == 0)

    def _save(self, *, beside: bool, by_clock: bool = False) -> None:
        """After the last step. `beside`: training goes on when the state is copied, not when it is published."""
        self._read_steps()
        began = time.perf_counter()
        step = self.state.last_step
        # Told before it waits for a save that is on its way: in this stage bytes that move are no hang.
        self.teller.progress(stage=Stage.SAVING, detail=names.checkpoint_folder(step))
        self.saver.settle()
        beside = self.saver.begin(
            CheckpointManifest(
                step=step,
                total_steps=self.total_steps,
                attempt=self.place.fence.attempt,
                world_size=self.world.size,
                config_digest=self.config_digest,
                data_digest=self.data.digest,
                saved_at=utc_now(),
                loss=self.state.loss,
                evaluation=self.state.evaluation,
                skipped_steps=self.state.skipped_steps,
                non_finite_steps=self.state.non_finite_steps,
                halvings=self.accumulation.halvings - self.place.shortages,
                saved_by_stop=None if by_clock or self._is_to_be_saved(step) else True,
                saved_by_clock=by_clock or None,
                files=[],
            ),
            random_state=self.random_state,
            beside=beside,
        )
        if not beside:
            self.saver.settle()
        stall_seconds = time.perf_counter() - began
        self.clock.begin_again(stall_seconds=stall_seconds)
        self.teller.save_stall_seconds += stall_seconds
        self.teller.progress(stage=Stage.TRAINING, detail=None)

    def _export(self) -> None:
        world, place, last_step = self.world, self.place, self.state.last_step
        # The best checkpoint is read as a whole before it is chosen.
        self.teller.progress(stage=Stage.EXPORTING, detail=None)
        last, chosen = choose_exported(
            place,
            last_step=last_step,
            exports_best=self.evaluation is not None and self.evaluation.exports_best,
            world=world,
            teller=self.teller,
        )
        self.state.final_digest = last.digest()
        if chosen.step != last_step:
            load_weights(self.model, world=world, storage=place.fence.storage, step=chosen.step)
        for export in place.exports:
            self.teller.progress(stage=Stage.EXPORTING, detail=export.folder.name)
            write_export(
                export,
                self.model,
                options=self.options,
                data=self.data,
                stream=self.stream,
                world=world,
                checkpoint=chosen,
                total_steps=self.total_steps,
            )
