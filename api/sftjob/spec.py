"""`spec` of an SFTJob: what users write. Every field here works; a check that one field can't hold alone is at
the model that holds both, with its sentence and its form for the API server in `rules.py`.
"""

import json
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sftjob.base import NEW, Declared
from sftjob.compute import ComputeSpec
from sftjob.forms import (
    URI_FORMS,
    Label,
    Uri,
)
from sftjob.names import OUTPUT_VARIABLE, S3, default_storage
from sftjob.options import (
    AdamWConfig,
    CELossConfig,
    FSDPConfig,
    LoRAConfig,
    LRConfig,
    OutputFormat,
    Precision,
    ReportTo,
    SaveMode,
)
from sftjob.rules import (
    ADAPTER_NEEDS_LORA,
    BATCH_IS_DIVISIBLE,
    BEST_IS_OF_CHECKPOINTS,
    BEST_IS_OF_EVALUATED_CHECKPOINTS,
    BUCKET_STORAGE_NEEDS_AN_OUTPUT,
    CHECKPOINTS_LIE_OUTSIDE_OUTPUTS,
    DATA_OR_SCRIPT,
    LORA_NEEDS_A_MODEL,
    MODEL_OR_SCRIPT,
    NOT_DATA_AND_SCRIPT,
    NOT_MODEL_AND_SCRIPT,
    NOT_TRAINING_AND_SCRIPT,
    ONE_LENGTH,
    OUTPUT_OR_SCRIPT,
    OUTPUTS_LIE_APART,
    SILENCE_CAN_BE_SEEN,
    STORAGE_FROM_SOMEWHERE,
    Rule,
    lr_ends_below_its_peak,
    rules,
)
from sftjob.sources import DataSpec, ModelSpec, ScriptSpec

ARGUMENT_BYTES = 128 * 1024 - 1
"""The longest argument that Linux gives to a program. The launch plan is one."""
_PLAN_BYTES = 4096
"""Of a plan beside the spec and the mounts: names, and defaults of training that it fixes."""
_MOUNT_BYTES = 64
LR_ENDS_BELOW_ITS_PEAK = lr_ends_below_its_peak(
    lr=AdamWConfig.model_fields["lr"].default, lr_min=LRConfig.model_fields["lr_min"].default
)


class TrainingSpec(Declared):
    """How long and how to train."""

    model_config = rules(ONE_LENGTH, LR_ENDS_BELOW_ITS_PEAK)

    total_epoch: int | None = Field(
        default=None, ge=1, le=10_000, description="Passes over the data; 1 if no totalStep."
    )
    total_step: int | None = Field(default=None, ge=1, description="Optimiser steps, instead of totalEpoch.")
    global_batch_size: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Packs a step, over all ranks. Absent: one a rank."
    )
    lora: LoRAConfig | None = Field(
        default=None,
        description="Train low-rank matrices beside the weights; `{}` takes every default. Absent: train all weights.",
    )
    optimizer: AdamWConfig = AdamWConfig()
    lr_schedule: LRConfig = LRConfig()
    fsdp: FSDPConfig = FSDPConfig()
    loss: CELossConfig = CELossConfig()
    precision: Precision = Field(default="auto", description="auto: bf16 on GPUs that have it, fp32 on CPU.")
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="Of initialisation, sampling and order.")
    report_to: ReportTo = ["tensorboard"]

    @model_validator(mode="after")
    def _fields_together(self, info: ValidationInfo) -> Self:
        problems = []
        if self.total_epoch is not None and self.total_step is not None:
            problems.append(ONE_LENGTH.told())
        # Jobs from before this rule go on.
        if info.context == NEW and self.lr_schedule.ends_above(self.optimizer.lr):
            problems.append(LR_ENDS_BELOW_ITS_PEAK.told(lr_min=self.lr_schedule.lr_min, lr=self.optimizer.lr))
        if problems:
            raise ValueError("\n".join(problems))
        return self


class CheckpointSpec(Declared):
    """Where, when and how many checkpoints are kept: what training goes on from after whatever kills it."""

    storage: Uri | None = Field(
        default=None, description=f"Folder of this job alone: {URI_FORMS}. Absent: the first output + `.checkpoints`."
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        description="Optimiser steps from one checkpoint to the next. Absent: each half hour, less often where a save "
        "takes longer than 90 s, and at the end; what is saved each half hour goes when anything newer is, or when its "
        "room is needed. With `script` this, keepLast and saveMode count where its Trainer is not told otherwise.",
    )
    keep_last: int = Field(default=2, ge=2, le=100, description="Checkpoints to keep; older ones are deleted.")
    save_mode: SaveMode = Field(
        default="sync",
        description="async: training goes on once the state is copied to host memory, which must have room for one "
        "more copy of weights and moments. sync: it waits for the disk. The last save is always sync, as is "
        "that of each half hour where everySteps is absent.",
    )


class OutputSpec(Declared):
    """What becomes of the model."""

    uri: Uri = Field(description=f"Folder to create, that holds no other output and no checkpoints: {URI_FORMS}.")
    format: OutputFormat = Field(
        default="hf",
        description="hf: a Hugging Face model folder, into which `training.lora` is merged. adapter: what "
        "`training.lora` learnt alone, for peft.",
    )
    dtype: Precision = Field(
        default="auto",
        description="Of the weights. auto: that of the model in `loadFrom`; fp32 without one, and for an adapter.",
    )


class QueueSpec(Declared):
    """A queue of Kueue that decides when the job runs. With `sft run` there is none."""

    name: Label = Field(
        description="Of a LocalQueue in the job's namespace. Who stands first is told by `compute.priorityClassName`."
    )


class RunPolicySpec(Declared):
    """When to stop and how often to begin again; all that may be changed after creation."""

    model_config = rules(SILENCE_CAN_BE_SEEN)

    suspend: bool = Field(default=False, description="Save and stop; false again goes on.")
    preflight: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether an attempt with one worker and no accelerators comes first, which looks at storage, model "
        "and data and prepares them, until one has found everything ready. auto: where `compute.resources` names "
        "accelerators and nothing is saved yet.",
    )
    retries: int = Field(default=3, ge=0, le=100, description="Attempts after a failure.")
    disruption_retries: int = Field(
        default=100, ge=0, le=10_000, description="Attempts after a preemption or a lost node."
    )
    start_deadline_seconds: int | None = Field(
        default=None,
        ge=10,
        le=604_800,
        description="From an attempt's creation, or from when its queue lets it run, until all its pods run; then it "
        "lets go of what it holds, which uses one of `disruptionRetries`. Absent: it waits.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Running time of all attempts together; then the job saves, stops and fails. Absent: no limit.",
    )
    progress_deadline_seconds: int | None = Field(
        default=None,
        ge=0,
        le=604_800,
        description="Time that a running attempt may show no new step, stage or detail of it: more than the longest "
        "export takes. Then it ends as `Hang`. A script without a Trainer of ours shows nothing. Absent: the launchers "
        "learn what is normal, of such a script nothing. 0: no limit.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Then the object is deleted; storage stays. Absent: it stays. Without effect in `sft run`.",
    )
    termination_grace_period_seconds: int = Field(
        default=120,
        ge=10,
        le=3600,
        description="From the signal to save until everything is killed; a change counts from the next attempt on.",
    )

    @model_validator(mode="after")
    def _silence(self) -> Self:
        if self.progress_deadline_seconds is not None and 0 < self.progress_deadline_seconds < 10:
            raise ValueError(SILENCE_CAN_BE_SEEN.told(seconds=self.progress_deadline_seconds))
        return self


class SFTJobSpec(Declared):
    """One fine-tuning run: what to start from, the data, where the result goes; or a script that knows."""

    model_config = rules(
        MODEL_OR_SCRIPT,
        DATA_OR_SCRIPT,
        OUTPUT_OR_SCRIPT,
        NOT_MODEL_AND_SCRIPT,
        NOT_DATA_AND_SCRIPT,
        NOT_TRAINING_AND_SCRIPT,
        STORAGE_FROM_SOMEWHERE,
        BUCKET_STORAGE_NEEDS_AN_OUTPUT,
        BATCH_IS_DIVISIBLE,
        BEST_IS_OF_CHECKPOINTS,
        BEST_IS_OF_EVALUATED_CHECKPOINTS,
        LORA_NEEDS_A_MODEL,
        ADAPTER_NEEDS_LORA,
        OUTPUTS_LIE_APART,
        CHECKPOINTS_LIE_OUTSIDE_OUTPUTS,
    )

    script: ScriptSpec | None = None
    model: ModelSpec | None = Field(default=None, validate_default=True)
    data: DataSpec | None = Field(default=None, validate_default=True)
    training: TrainingSpec | None = None
    checkpoint: CheckpointSpec = CheckpointSpec()
    output: list[OutputSpec] | None = Field(
        default=None,
        min_length=1,
        max_length=4,
        validate_default=True,
        description="Where the finished model goes. A script may do without; one that has no Trainer of ours writes "
        f"it into the folder that {OUTPUT_VARIABLE} names in its environment.",
    )
    compute: ComputeSpec = ComputeSpec()
    queue: QueueSpec | None = None
    run_policy: RunPolicySpec = RunPolicySpec()

    @field_validator("model", "data", "training", "output")
    @classmethod
    def _or_script(cls, value: Any, info: ValidationInfo) -> Any:
        """At each field, so that it is told together with what else is wrong."""
        # A script that is wrong itself is not in `data`, but was given.
        has_script = "script" not in info.data or info.data["script"] is not None
        broken = None
        if value is None and not has_script:
            broken = _MISSING_WITHOUT_SCRIPT.get(info.field_name)
        if value is not None and has_script:
            broken = _NOT_WITH_SCRIPT.get(info.field_name)
        if broken:
            raise ValueError(broken.told())
        return value

    @model_validator(mode="after")
    def _sections_together(self, info: ValidationInfo) -> Self:
        problems = []
        if self.script and self.output is None and self.checkpoint.storage is None:
            problems.append(STORAGE_FROM_SOMEWHERE.told())
        storage = self.checkpoint.storage or (self.outputs[0].uri if self.outputs else "")
        if storage.startswith(S3) and self.output is None:
            problems.append(BUCKET_STORAGE_NEEDS_AN_OUTPUT.told())
        batch, world = self.training.global_batch_size if self.training else None, self.compute.world_size
        if batch is not None and batch % world:
            problems.append(BATCH_IS_DIVISIBLE.told(batch=batch, world=world))
        evaluation, saved = self.data.evaluation if self.data else None, self.checkpoint.every_steps
        if evaluation and evaluation.export_best:
            if saved is None:
                problems.append(BEST_IS_OF_CHECKPOINTS.told())
            elif saved % evaluation.every_steps:
                told = BEST_IS_OF_EVALUATED_CHECKPOINTS.told(saved=saved, evaluated=evaluation.every_steps)
                problems.append(told)
        has_lora = self.training is not None and self.training.lora is not None
        if has_lora and self.model and not self.model.load_from:
            problems.append(LORA_NEEDS_A_MODEL.told())
        adapters = [output.uri for output in self.outputs if output.format == "adapter"]
        if adapters and not has_lora and not self.script:
            problems.append(ADAPTER_NEEDS_LORA.told(uri=adapters[0]))
        # Jobs from before these rules go on.
        if info.context == NEW:
            problems += self._folders_that_collide()
        if not problems and (too_long := self._too_long()):
            problems.append(too_long)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _folders_that_collide(self) -> list[str]:
        """What is published appears whole, by a rename: nothing may stand there before, or be written inside of it."""
        uris = [output.uri for output in self.outputs]
        problems = []
        if holding := [uri for uri in uris if sum(_lies_in(other, uri) for other in uris) > 1]:
            problems.append(OUTPUTS_LIE_APART.told(uri=holding[0]))
        if holding := [uri for uri in uris if _lies_in(self.storage_uri, uri)]:
            problems.append(CHECKPOINTS_LIE_OUTSIDE_OUTPUTS.told(storage=self.storage_uri, uri=holding[0]))
        return problems

    def _too_long(self) -> str | None:
        """What the launchers get as one argument is this spec, and every place in it once more with its path."""

        def written(value: Any) -> int:
            # A dollar is written twice: the kubelet puts variables into arguments.
            return len(text := json.dumps(value, ensure_ascii=False).encode()) + text.count(b"$")

        spec = self.to_json_dict()
        size = written(spec) + sum(2 * written(uri) + _MOUNT_BYTES for uri in self.uris)
        if size <= ARGUMENT_BYTES - _PLAN_BYTES:
            return None
        lists = {("script", "args"), ("compute", "env"), ("data", "datasets")}
        sizes = {f"{section}.{name}": written(spec.get(section, {}).get(name, [])) for section, name in lists}
        longest = max(sizes, key=lambda path: sizes[path])
        return (
            f"{longest}: with {sizes[longest]} bytes of it launchers are told {size} bytes, but a program's argument "
            f"takes {ARGUMENT_BYTES - _PLAN_BYTES}; shorten it, or put what is long into a file"
        )

    @property
    def outputs(self) -> list[OutputSpec]:
        return self.output or []

    @property
    def storage_uri(self) -> str:
        return self.checkpoint.storage or default_storage(self.outputs[0].uri)

    @property
    def places(self) -> dict[str, str]:
        """The URI of everything that the job reads or writes, by path in the spec."""
        found = self.script.places if self.script else {}
        if self.data:
            found |= {f"{path}.uri": dataset.uri for path, dataset in self.data.sources.items()}
        found["spec.checkpoint.storage"] = self.storage_uri
        found |= {f"spec.output[{index}].uri": output.uri for index, output in enumerate(self.outputs)}
        if self.model and self.model.load_from:
            found["spec.model.loadFrom.uri"] = self.model.load_from.uri
        if self.model and self.model.tokenizer:
            found["spec.model.tokenizer.uri"] = self.model.tokenizer.uri
        return found

    @property
    def uris(self) -> list[str]:
        """Every place the job reads or writes, each once."""
        return list(dict.fromkeys(self.places.values()))

    @property
    def written_uris(self) -> list[str]:
        """Storage and outputs."""
        return [self.storage_uri, *(output.uri for output in self.outputs)]


def _lies_in(uri: str, folder: str) -> bool:
    """Whether a place is this folder or inside of it, by whole parts: `a/bc` does not lie in `a/b`."""
    return f"{uri.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


_MISSING_WITHOUT_SCRIPT: dict[str | None, Rule] = {
    "model": MODEL_OR_SCRIPT,
    "data": DATA_OR_SCRIPT,
    "output": OUTPUT_OR_SCRIPT,
}
_NOT_WITH_SCRIPT: dict[str | None, Rule] = {
    "model": NOT_MODEL_AND_SCRIPT,
    "data": NOT_DATA_AND_SCRIPT,
    "training": NOT_TRAINING_AND_SCRIPT,
}
