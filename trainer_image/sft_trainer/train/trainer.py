"""`Trainer(...).fit()`: the Python API, in the shape of XTuner V1's, for a script of the user's own under torchrun."""

import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args

from sft_trainer.datasets.config import DataloaderConfig
from sft_trainer.datasets.prepare import PreparedData, prepare_data
from sft_trainer.datasets.shown import log_receipt, log_samples
from sft_trainer.model import FolderConfig, ModelConfig
from sft_trainer.model.config import trained_config
from sft_trainer.run import RunOptions, RunPlace, RunState, Tracking
from sft_trainer.stop import StopSignal
from sft_trainer.storage.fence import Fence
from sft_trainer.tracking.usable import refuse_unusable_trackers
from sft_trainer.train.accumulate import shortage_reason
from sft_trainer.train.evaluation import refuse_choice_without_checkpoints
from sft_trainer.train.launched import fit_launched, this_launch
from sft_trainer.train.loop import train
from sft_trainer.train.own_exports import missing_own_exports, own_export, publish_own_exports
from sft_trainer.train.stop import Preempted
from sft_trainer.train.world import World, open_world, this_rank
from sftjob import names
from sftjob.failure import SHORTAGES, ExitCode, JobFailure, Reason
from sftjob.options import (
    AdamWConfig,
    CELossConfig,
    FSDPConfig,
    LoRAConfig,
    LRConfig,
    Precision,
    SaveMode,
    Tracker,
)

log = logging.getLogger("sft_trainer")

_OWNER = "a script of its own"
_KEEP_LAST = 2
_GRACE_SECONDS = 30.0
"""What torchrun gives its ranks between SIGTERM and SIGKILL."""


class Trainer:
    """Fine-tunes (or trains from scratch) a model on chat data.

    Every rank constructs it with the same arguments and calls `fit`. A run's files go into `work_dir/<time>/`:
    checkpoints `step-<K>/`, `attempts/<N>/metrics.jsonl`, `tensorboard/`, the trained model in `hf/`, what LoRA learnt
    in `adapter/`.

    In the script of an SFTJob, `work_dir` and `auto_resume` are the job's to say: its storage, and yes.
    """

    def __init__(
        self,
        *,
        model_cfg: ModelConfig | FolderConfig,
        tokenizer_path: str | Path,
        dataloader_cfg: DataloaderConfig,
        optim_cfg: AdamWConfig,
        lr_cfg: LRConfig,
        load_from: str | Path | None = None,
        loss_cfg: CELossConfig | None = None,
        fsdp_cfg: FSDPConfig | None = None,
        lora_cfg: LoRAConfig | None = None,
        global_batch_size: int | None = None,
        total_epoch: int | None = None,
        total_step: int | None = None,
        work_dir: str | Path = "work_dir",
        checkpoint_interval: int = -1,
        checkpoint_maxkeep: int | None = None,
        async_checkpoint: bool | None = None,
        auto_resume: bool = False,
        precision: Precision = "auto",
        seed: int = 42,
        report_to: Sequence[Tracker] = ("tensorboard",),
    ) -> None:
        """
        Args:
            load_from: a Hugging Face model folder; None trains from scratch.
            lora_cfg: trains low-rank matrices beside the weights of `load_from`; None trains all weights.
            global_batch_size: packs a step over all ranks; None is one a rank.
            total_epoch, total_step: at most one of them; neither is one epoch.
            checkpoint_interval: in steps; -1 saves at the end only, in the script of an SFTJob as the job says: where
                that says nothing, each half hour too.
            checkpoint_maxkeep: older checkpoints are deleted; at least 2, or -1 to keep all. None is 2, or what the
                job says.
            async_checkpoint: train on while a copy of the state, in host memory, is written. None is no, or what the
                job says.
            report_to: where curves go besides metrics.jsonl: tensorboard, wandb, trackio.
            auto_resume: go on with the newest run in `work_dir`, from its newest checkpoint that verifies, and with
                smaller micro-batches where memory ran out.

        Raises:
            JobFailure: an argument, with its value and the remedy.
        """
        _, ranks = this_rank()
        _refuse_other_types(
            {
                "model_cfg": (model_cfg, ModelConfig | FolderConfig),
                "dataloader_cfg": (dataloader_cfg, DataloaderConfig),
                "optim_cfg": (optim_cfg, AdamWConfig),
                "lr_cfg": (lr_cfg, LRConfig),
                "loss_cfg": (loss_cfg, CELossConfig | None),
                "fsdp_cfg": (fsdp_cfg, FSDPConfig | None),
                "lora_cfg": (lora_cfg, LoRAConfig | None),
                "tokenizer_path": (tokenizer_path, str | PathLike),
                "load_from": (load_from, str | PathLike | None),
                "work_dir": (work_dir, str | PathLike),
                "global_batch_size": (global_batch_size, int | None),
                "total_epoch": (total_epoch, int | None),
                "total_step": (total_step, int | None),
                "checkpoint_interval": (checkpoint_interval, int),
                "checkpoint_maxkeep": (checkpoint_maxkeep, int | None),
                "async_checkpoint": (async_checkpoint, bool | None),
                "auto_resume": (auto_resume, bool),
                "precision": (precision, str),
                "seed": (seed, int),
                "report_to": (report_to, list | tuple),
            }
        )
        problems = []
        if total_epoch is not None and total_step is not None:
            problems.append("total_step: given together with total_epoch; remove one")
        if lora_cfg is not None and load_from is None:
            problems.append("lora_cfg: given without load_from, so there is no trained model to adapt; name one")
        if lr_cfg.ends_above(optim_cfg.lr):
            problems.append(
                f"lr_cfg.lr_min: {lr_cfg.lr_min} is more than the peak, {optim_cfg.lr}; lower it, or raise optim_cfg.lr"
            )
        if global_batch_size is not None and global_batch_size % ranks:
            problems.append(
                f"global_batch_size: {global_batch_size} is not divisible by {ranks} ranks; use a multiple of {ranks}"
            )
        if checkpoint_interval != -1 and checkpoint_interval < 1:
            problems.append(
                f"checkpoint_interval: {checkpoint_interval} is not a number of steps; use 1 or more, or -1"
            )
        if checkpoint_maxkeep is not None and checkpoint_maxkeep != -1 and checkpoint_maxkeep < 2:
            problems.append(
                f"checkpoint_maxkeep: {checkpoint_maxkeep} keeps no spare checkpoint; use 2 or more, or -1 to keep all"
            )
        counts = {"global_batch_size": global_batch_size, "total_epoch": total_epoch, "total_step": total_step}
        problems += [f"{name}: {n}; use 1 or more" for name, n in counts.items() if n is not None and n < 1]
        if not 0 <= seed < 1 << 32:
            problems.append(f"seed: {seed}; use 0 to {(1 << 32) - 1}")
        if precision not in get_args(Precision):
            problems.append(f"precision: {precision!r}; use one of {', '.join(get_args(Precision))}")
        if not set(report_to) <= set(get_args(Tracker)):
            problems.append(f"report_to: {report_to!r}; use a list of {', '.join(get_args(Tracker))}")
        if problems:
            raise JobFailure(Reason.INVALID_CONFIGURATION, "\n".join(problems))
        self._options = RunOptions(
            model_cfg=model_cfg,
            load_from=str(load_from) if load_from else None,
            tokenizer_path=str(tokenizer_path),
            dataloader_cfg=dataloader_cfg,
            optim_cfg=optim_cfg,
            lr_cfg=lr_cfg,
            loss_cfg=loss_cfg or CELossConfig(),
            fsdp_cfg=fsdp_cfg or FSDPConfig(),
            global_batch_size=global_batch_size or ranks,
            total_epoch=total_epoch,
            total_step=total_step,
            precision=precision,
            seed=seed,
            lora_cfg=lora_cfg,
        )
        self._work_dir = Path(work_dir)
        self._interval = None if checkpoint_interval == -1 else checkpoint_interval
        self._keep_last = sys.maxsize if checkpoint_maxkeep == -1 else checkpoint_maxkeep
        self._save_mode: SaveMode | None = None
        if async_checkpoint is not None:
            self._save_mode = "async" if async_checkpoint else "sync"
        self._auto_resume = auto_resume
        self._report_to = report_to

    def fit(self) -> Path:
        """Trains to the end and returns the folder of the trained model, on every rank.

        In the script of an SFTJob with an output that is the folder to be published once the script has ended.
        On SIGTERM to any rank, or a first Ctrl-C, all save and exit with code 75. Raises JobFailure for all that a user
        can mend.
        """
        rank, _ = this_rank()
        logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
        launch = this_launch()
        if launch is not None:
            return fit_launched(
                launch,
                self._options,
                interval=self._interval,
                keep_last=self._keep_last,
                save_mode=self._save_mode,
                report_to=self._report_to,
            )
        refuse_unusable_trackers(self._report_to, field="report_to")
        # Before the data, which may take hours.
        trained_config(self._options.model_cfg, load_from=self._options.load_from)
        if self._options.evaluation:
            refuse_choice_without_checkpoints(self._options.evaluation, checkpoint_interval=self._interval)
        data = prepare_data(
            self._options.dataloader_cfg,
            tokenizer_path=self._options.tokenizer_path,
            cache_dir=self._work_dir / names.CACHE,
            seed=self._options.seed,
        )
        if rank == 0:
            log_receipt(data)
            log_samples(data, tokenizer_path=self._options.tokenizer_path)
        # Until here there is nothing to save, and the signal ends the process as it ends any.
        stop = StopSignal(of_keyboard=True)
        try:
            with open_world(is_watched=False) as world:
                model = self._fit(data, world, stop)
        except Preempted as preempted:
            log.info("%s; auto_resume=True goes on", preempted)
            raise SystemExit(ExitCode.PREEMPTED) from None
        except BaseException:
            stop.give_back()
            raise
        stop.close()
        return model

    def _fit(self, data: PreparedData, world: World, stop: StopSignal) -> Path:
        folder, attempt = world.from_first(self._claim_folder)
        fence = Fence(folder, _OWNER, attempt)
        place = RunPlace(
            fence=fence,
            resume=self._auto_resume,
            exports=missing_own_exports(self._options, fence),
            checkpoint_interval=self._interval,
            saves_by_clock=False,
            keep_last=self._keep_last or _KEEP_LAST,
            save_mode=self._save_mode or "sync",
            shortages=world.from_first(lambda: len(list(folder.glob(f"{names.ATTEMPTS}/*/{names.SHORTAGE}")))),
            grace_seconds=_GRACE_SECONDS,
            scratch=None,
            tracking=Tracking(self._report_to, run_id=folder.name, run_name=folder.name),
        )
        try:
            train(self._options, place, data, world=world, stop=stop, state=RunState())
        except (JobFailure, RuntimeError) as error:
            reason = error.reason if isinstance(error, JobFailure) else shortage_reason(error)
            if reason in SHORTAGES:
                names.shortage(folder, attempt).touch()
            raise
        world.from_first(lambda: publish_own_exports(place))
        log.info("the trained model is in %s", own_export(folder))
        return own_export(folder)

    def _claim_folder(self) -> tuple[Path, int]:
        """On rank 0: the run's folder and the number of this attempt in it, both taken exclusively."""
        # Those named as below: any other name would sort among them by chance.
        named = "-".join("[0-9]" * digits for digits in (8, 6, 6))
        runs = sorted(path.parent for path in self._work_dir.glob(f"{named}/{names.ATTEMPTS}"))
        if self._auto_resume and runs:
            numbers = [int(path.name) for path in (runs[-1] / names.ATTEMPTS).iterdir() if path.name.isdecimal()]
            attempt = 1 + max(numbers, default=0)
            names.attempt_folder(runs[-1], attempt).mkdir()
            log.info("goes on with the run in %s, as attempt %d", runs[-1], attempt)
            return runs[-1], attempt
        folder = self._work_dir / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        names.attempt_folder(folder, 1).mkdir(parents=True)
        log.info("begins a run in %s", folder)
        return folder, 1


def _names(wanted: type | UnionType) -> list[str]:
    return [kind.__name__ for kind in get_args(wanted) or [wanted] if kind is not NoneType]


def _refuse_other_types(given: Mapping[str, tuple[object, type | UnionType]]) -> None:
    """By argument, what was given and what it has to be."""
    problems = [
        f"{name}: is of type {type(value).__name__}; use {' or '.join(_names(wanted))}"
        for name, (value, wanted) in given.items()
        if not isinstance(value, wanted)
    ]
    if problems:
        raise JobFailure(Reason.INVALID_CONFIGURATION, "\n".join(problems))
