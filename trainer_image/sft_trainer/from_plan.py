"""A launch plan, as the Trainer's options and place. Pure."""

from pathlib import Path
from typing import Any

from sft_trainer.datasets import OpenaiTokenizeFunctionConfig
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig, EvaluationConfig
from sft_trainer.downloads.sources import local_path, source_of
from sft_trainer.model import FolderConfig, ModelConfig, get_model_config_from_hf
from sft_trainer.run import Export, RunOptions, RunPlace, Tracking
from sft_trainer.storage.exports import export_folder
from sft_trainer.storage.fence import Fence
from sftjob.plan import LaunchPlan
from sftjob.presets import PRESETS
from sftjob.sources import DatasetSpec, ModelSpec


def model_config(model: ModelSpec, *, folder: str | None) -> ModelConfig | FolderConfig:
    """`folder`: where `loadFrom` lies. Raises JobFailure(MODEL_UNREADABLE) where its config.json is needed."""
    if model.preset:
        return PRESETS[model.preset](**model.overrides.model_dump(exclude_none=True))
    assert folder is not None, "without a preset there is a folder"
    return get_model_config_from_hf(folder)


def run_options(plan: LaunchPlan) -> RunOptions:
    """Of a job without a script. Raises JobFailure(MODEL_UNREADABLE) where neither preset nor config.json tells."""
    model, data, training = plan.spec.model, plan.spec.data, plan.spec.training
    load_from = local_path(plan, model.load_from) if model.load_from else None
    tokenizer = model.tokenizer or model.load_from
    tokenize = OpenaiTokenizeFunctionConfig(chat_template=data.chat_template, max_length=data.packing.max_length)

    def entries(datasets: list[DatasetSpec]) -> list[dict[str, Any]]:
        return [
            {
                "dataset": DatasetConfig(
                    name=dataset.name,
                    anno_path=local_path(plan, dataset),
                    format=dataset.format,
                    columns=dataset.columns or {},
                    sample_ratio=dataset.sample_ratio,
                ),
                "tokenize_fn": tokenize,
            }
            for dataset in datasets
        ]

    return RunOptions(
        model_cfg=model_config(model, folder=load_from),
        load_from=load_from,
        base_repository=source.origin if (source := source_of(plan, model.load_from)) else None,
        tokenizer_path=local_path(plan, tokenizer),
        dataloader_cfg=DataloaderConfig(
            dataset_config_list=entries(data.datasets),
            evaluation=data.evaluation
            and EvaluationConfig(
                fraction=data.evaluation.fraction,
                dataset_config_list=entries(data.evaluation.datasets) if data.evaluation.datasets else None,
                every_steps=data.evaluation.every_steps,
                patience=data.evaluation.patience,
                export_best=data.evaluation.export_best,
            ),
            pack_level=data.packing.level,
            pack_max_length=data.packing.max_length,
            overlong=data.overlong,
            bad_line_budget=data.bad_line_budget,
        ),
        optim_cfg=training.optimizer,
        lr_cfg=training.lr_schedule,
        loss_cfg=training.loss,
        fsdp_cfg=training.fsdp,
        global_batch_size=training.global_batch_size or plan.spec.compute.world_size,
        total_epoch=training.total_epoch,
        total_step=training.total_step,
        precision=training.precision,
        seed=training.seed,
        lora_cfg=training.lora,
    )


def run_place(plan: LaunchPlan, scratch: Path) -> RunPlace:
    return RunPlace(
        fence=Fence.of(plan),
        resume=True,
        exports=[
            Export(export_folder(plan, output.uri, attempt=plan.attempt), output.format, output.dtype)
            for output in plan.spec.outputs
        ],
        checkpoint_interval=plan.spec.checkpoint.every_steps,
        saves_by_clock=True,
        keep_last=plan.spec.checkpoint.keep_last,
        save_mode=plan.spec.checkpoint.save_mode,
        shortages=plan.shortages,
        grace_seconds=plan.spec.run_policy.termination_grace_period_seconds,
        scratch=scratch,
        tracking=Tracking(
            # A script's Trainer says it itself.
            report_to=plan.spec.training.report_to if plan.spec.training else [],
            run_id=plan.job.uid,
            run_name=plan.job.name,
        ),
    )
