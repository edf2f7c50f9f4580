"""`spec` of an SFTJob: what users write. Every field here works; a check that one field can't hold alone is at
the model that holds both, with its sentence and its form for the API server in `rules.py`.
"""

import json
import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from sftjob.base import NEW, Declared
from sftjob.forms import (
    ARGUMENT_FORMS,
    ARGUMENT_PLACE,
    DATA_KEY,
    DATA_URI_FORMS,
    IMAGE,
    MODEL_URI_FORMS,
    SCRIPT_URI_FORMS,
    URI_FORMS,
    VARIABLE,
    DataUri,
    Label,
    LabelValue,
    ModelUri,
    ObjectName,
    QualifiedName,
    Quantity,
    Revision,
    ScriptUri,
    Uri,
)
from sftjob.names import HUB, OUTPUT_VARIABLE, RESERVED_VARIABLES, S3, SECRET_VARIABLES, default_storage
from sftjob.options import (
    AdamWConfig,
    BadLineBudget,
    CELossConfig,
    EvaluationOptions,
    FSDPConfig,
    LoRAConfig,
    LRConfig,
    OutputFormat,
    Overlong,
    PackLevel,
    Precision,
    ReportTo,
    RowFormat,
    SaveMode,
)
from sftjob.presets import PRESETS
from sftjob.rules import (
    ADAPTER_NEEDS_LORA,
    ARGUMENTS_HAVE_A_FORM,
    BATCH_IS_DIVISIBLE,
    BEST_IS_OF_CHECKPOINTS,
    BEST_IS_OF_EVALUATED_CHECKPOINTS,
    BUCKET_STORAGE_IS_OF_ONE_NODE,
    BUCKET_STORAGE_NEEDS_AN_OUTPUT,
    DATA_OR_SCRIPT,
    DATASET_NAMES_DIFFER,
    EVALUATION_DATA_FROM_SOMEWHERE,
    LORA_NEEDS_A_MODEL,
    MODEL_OR_PRESET,
    MODEL_OR_SCRIPT,
    NOT_DATA_AND_SCRIPT,
    NOT_FRACTION_AND_DATASETS,
    NOT_MODEL_AND_SCRIPT,
    NOT_TRAINING_AND_SCRIPT,
    NOT_VALUE_AND_SOURCE,
    ONE_LENGTH,
    OUTPUT_OR_SCRIPT,
    PRESET_IS_KNOWN,
    REVISION_OF_A_HUB,
    SECRET_IS_NAMED,
    SILENCE_CAN_BE_SEEN,
    STORAGE_FROM_SOMEWHERE,
    TOKENIZER_FROM_SOMEWHERE,
    VALUE_OR_SOURCE,
    VARIABLE_IS_FREE,
    Rule,
    overrides_fit_the_preset,
    overrides_need_a_preset,
    rules,
)

ARGUMENT_BYTES = 128 * 1024 - 1
"""The longest argument that Linux gives to a program. The launch plan is one."""
_PLAN_BYTES = 4096
"""Of a plan beside the spec and the mounts: names, and defaults of training that it fixes."""
_MOUNT_BYTES = 64

_S = TypeVar("_S", "UriSource", "DatasetSpec")


def _revision_is_of_a_hub(source: _S) -> _S:
    if source.revision is not None and not source.uri.startswith(HUB):
        raise ValueError(REVISION_OF_A_HUB.told(uri=source.uri))
    return source


_REVISION = Field(default=None, description="Of a hub's repository: branch, tag or commit. Absent: main.")


class ScriptSpec(Declared):
    """A Python file that every rank runs, as under `torchrun`, instead of `model`, `data` and `training`.

    A `Trainer` of `sft_trainer` in it works in `checkpoint.storage`, resumes and stops as any job does.
    """

    model_config = rules(ARGUMENTS_HAVE_A_FORM)

    uri: ScriptUri = Field(description=f"The file: {SCRIPT_URI_FORMS}.")
    args: list[Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default=[],
        max_length=64,
        description=f"Its arguments. One that is {ARGUMENT_FORMS} as a whole arrives as the path where that lies.",
    )

    @field_validator("args")
    @classmethod
    def _forms(cls, args: list[str]) -> list[str]:
        for one in args:
            if _is_place(one) and not re.fullmatch(ARGUMENT_PLACE, one):
                raise ValueError(ARGUMENTS_HAVE_A_FORM.told(argument=one))
        return args

    @property
    def places(self) -> dict[str, str]:
        """The script, and what of its arguments is a place, by path in the spec."""
        listed = {f"spec.script.args[{index}]": one for index, one in enumerate(self.args) if _is_place(one)}
        return {"spec.script.uri": self.uri} | listed


def _is_place(argument: str) -> bool:
    return argument.startswith(("pvc://", "configMap://"))


class UriSource(Declared):
    """Where something is read from."""

    model_config = rules(REVISION_OF_A_HUB)

    uri: ModelUri = Field(description=f"A folder, or a hub's repository: {MODEL_URI_FORMS}.")
    revision: Revision | None = _REVISION

    _check = model_validator(mode="after")(_revision_is_of_a_hub)


class ModelOverrides(Declared):
    """Fields of the model's configuration that replace the preset's; for a model trained from scratch."""

    vocab_size: int | None = Field(default=None, ge=1, description="Rows of the embedding.")
    hidden_size: int | None = Field(default=None, ge=1, description="Width of the residual stream.")
    intermediate_size: int | None = Field(default=None, ge=1, description="Width inside each layer's MLP.")
    num_hidden_layers: int | None = Field(default=None, ge=1, description="Decoder layers.")
    num_attention_heads: int | None = Field(default=None, ge=1, description="Query heads of each layer.")
    num_key_value_heads: int | None = Field(
        default=None, ge=1, description="Key and value heads of each layer, shared by the query heads."
    )
    head_dim: int | None = Field(default=None, ge=1, description="Size of a head, where presets have one of their own.")
    max_position_embeddings: int | None = Field(default=None, ge=1, description="Longest sequence, in tokens.")
    rms_norm_eps: float | None = Field(default=None, gt=0, description="Added to the square of each norm.")
    rope_theta: float | None = Field(default=None, gt=0, description="Base of the rotary embedding's wavelengths.")
    tie_word_embeddings: bool | None = Field(default=None, description="Whether output and embedding share weights.")
    num_experts: int | None = Field(default=None, ge=1, description="Experts of each layer, in a mixture of them.")
    num_experts_per_tok: int | None = Field(default=None, ge=1, description="Of these, those that a token is sent to.")
    moe_intermediate_size: int | None = Field(default=None, ge=1, description="Width inside each expert.")


_OVERRIDES = {name: field.alias or name for name, field in ModelOverrides.model_fields.items()}
_OVERRIDES_NEED_A_PRESET = overrides_need_a_preset(_OVERRIDES.values())
_OVERRIDES_FIT_THE_PRESET = overrides_fit_the_preset(_OVERRIDES)


class ModelSpec(Declared):
    """What to start from: a pretrained model, or a preset to train from scratch."""

    model_config = rules(
        PRESET_IS_KNOWN,
        MODEL_OR_PRESET,
        TOKENIZER_FROM_SOMEWHERE,
        _OVERRIDES_NEED_A_PRESET,
        *(rule for _, rule in _OVERRIDES_FIT_THE_PRESET),
    )

    load_from: UriSource | None = Field(
        default=None, description="A Hugging Face model. Absent: train `preset` from scratch."
    )
    preset: str | None = Field(
        default=None, max_length=64, description=f"One of {', '.join(PRESETS)}. Absent: read from config.json."
    )
    overrides: ModelOverrides = ModelOverrides()
    tokenizer: UriSource | None = Field(
        default=None, description="A folder with the tokenizer. Absent: the one in `loadFrom`."
    )

    @model_validator(mode="after")
    def _sources(self) -> Self:
        problems = []
        if self.preset is not None and self.preset not in PRESETS:
            problems.append(PRESET_IS_KNOWN.told(preset=self.preset))
        elif self.preset is not None:
            unknown = self.overrides.model_dump(exclude_none=True).keys() - PRESETS[self.preset].model_fields.keys()
            broken = [rule for names, rule in _OVERRIDES_FIT_THE_PRESET if unknown.intersection(names)]
            problems += [rule.told(preset=self.preset) for rule in broken]
        if self.load_from is None and self.preset is None:
            problems.append(MODEL_OR_PRESET.told())
        if self.load_from is None and self.tokenizer is None:
            problems.append(TOKENIZER_FROM_SOMEWHERE.told())
        if self.preset is None and self.overrides.to_json_dict():
            problems.append(_OVERRIDES_NEED_A_PRESET.told())
        if problems:
            raise ValueError("\n".join(problems))
        return self


class DatasetSpec(Declared):
    """Rows: chats or texts."""

    model_config = rules(REVISION_OF_A_HUB)

    name: Label = Field(description="For messages and counts.")
    uri: DataUri = Field(
        description="JSONL, JSON (one array), Parquet or Arrow, by its ending, or a folder of such files: "
        f"{DATA_URI_FORMS}."
    )
    revision: Revision | None = _REVISION
    format: RowFormat = Field(
        default="auto",
        description="Of the rows: messages (OpenAI), sharegpt, prompt-completion, alpaca, or text. "
        "auto: what the first row has.",
    )
    sample_ratio: float = Field(
        default=1.0, gt=0, le=100, description="Below 1: a seeded fraction. Above 1: repeated that often."
    )

    _check = model_validator(mode="after")(_revision_is_of_a_hub)


class EvaluationSpec(EvaluationOptions):
    """The loss on data that is never trained on. The checkpoint with the lowest one is kept besides the newest."""

    model_config = rules(EVALUATION_DATA_FROM_SOMEWHERE, NOT_FRACTION_AND_DATASETS)

    datasets: list[DatasetSpec] = Field(
        default=[], max_length=32, description="Files of chats to evaluate on, instead of `fraction`."
    )

    @model_validator(mode="after")
    def _source(self) -> Self:
        if (self.fraction is None) == (not self.datasets):
            missing = self.fraction is None
            raise ValueError((EVALUATION_DATA_FROM_SOMEWHERE if missing else NOT_FRACTION_AND_DATASETS).told())
        return self


class PackingSpec(Declared):
    """How samples are put together into the rows of a batch."""

    level: PackLevel = Field(
        default="soft",
        description="soft: several whole samples a pack. hard: every pack full, its end cuts a sample, whose rest does "
        "not see what stood before. none: one sample a pack.",
    )
    max_length: int = Field(default=4096, ge=8, le=1_048_576, description="Tokens a pack holds, and a sample at most.")


class DataSpec(Declared):
    """What to train on."""

    model_config = rules(DATASET_NAMES_DIFFER)

    datasets: list[DatasetSpec] = Field(min_length=1, max_length=32, description="Files of chats, mixed together.")
    packing: PackingSpec = PackingSpec()
    overlong: Overlong = Field(
        default="truncate",
        description="What happens to a sample longer than `packing.maxLength`; always counted. truncate: its tail is "
        "cut off. drop: it is left out. split: it is trained in pieces, none of which sees what stood before. error: "
        "the job ends, with every such row.",
    )
    bad_line_budget: BadLineBudget = 0
    chat_template: str | None = Field(
        default=None,
        max_length=64,
        description="chatml, qwen3 or llama3: replaces the tokenizer's own template. Tools, calls and thoughts are "
        "written by qwen3; the others refuse rows that have them.",
    )
    evaluation: EvaluationSpec | None = Field(default=None, description="Absent: none.")

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [dataset.name for dataset in self.datasets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(DATASET_NAMES_DIFFER.told(name=name))
        return self

    @property
    def sources(self) -> dict[str, DatasetSpec]:
        """Every dataset, of training and of evaluation, by its path in the spec."""
        listed = {f"spec.data.datasets[{index}]": dataset for index, dataset in enumerate(self.datasets)}
        for index, dataset in enumerate(self.evaluation.datasets if self.evaluation else []):
            listed[f"spec.data.evaluation.datasets[{index}]"] = dataset
        return listed


class TrainingSpec(Declared):
    """How long and how to train."""

    model_config = rules(ONE_LENGTH)

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
    def _length(self) -> Self:
        if self.total_epoch is not None and self.total_step is not None:
            raise ValueError(ONE_LENGTH.told())
        return self


class CheckpointSpec(Declared):
    """Where, when and how many checkpoints are kept: what training goes on from after whatever kills it."""

    storage: Uri | None = Field(
        default=None, description=f"Folder of this job alone: {URI_FORMS}. Absent: the first output + `.checkpoints`."
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        description="Optimiser steps from one checkpoint to the next. Absent: at the end only. With `script` this, "
        "keepLast and saveMode count where its Trainer is not told otherwise.",
    )
    keep_last: int = Field(default=2, ge=2, le=100, description="Checkpoints to keep; older ones are deleted.")
    save_mode: SaveMode = Field(
        default="sync",
        description="async: training goes on once the state is copied to host memory, which must have room for one "
        "more copy of weights and moments. sync: it waits for the disk. The last save is always sync.",
    )


class OutputSpec(Declared):
    """What becomes of the model."""

    uri: Uri = Field(description=f"Folder to create: {URI_FORMS}.")
    format: OutputFormat = Field(
        default="hf",
        description="hf: a Hugging Face model folder, into which `training.lora` is merged. adapter: what "
        "`training.lora` learnt alone, for peft.",
    )
    dtype: Precision = Field(
        default="auto",
        description="Of the weights. auto: that of the model in `loadFrom`; fp32 without one, and for an adapter.",
    )


class ResourcesSpec(Declared):
    """Of each pod, by resource: `cpu`, `memory`, `nvidia.com/gpu`."""

    requests: dict[QualifiedName, Quantity] = Field(
        default={}, max_length=16, description="What a node must have free for a pod to go there."
    )
    limits: dict[QualifiedName, Quantity] = Field(
        default={}, max_length=16, description="What a pod gets at most; GPUs are named here."
    )


class TolerationSpec(Declared):
    """As a pod's: lets the job onto nodes with a taint."""

    key: QualifiedName | None = Field(default=None, description="Of the taint. Absent: every taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists: whatever the taint's value.")
    value: LabelValue | None = Field(default=None, description="Of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Absent: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="How long to stay under NoExecute. Absent: for ever."
    )


class SecretReference(Declared):
    """A Secret, by name."""

    name: ObjectName = Field(description="A Secret in the job's namespace.")


class SecretKey(Declared):
    """One entry of a Secret."""

    name: ObjectName = Field(description="A Secret in the job's namespace.")
    key: str = Field(max_length=253, pattern=DATA_KEY, description="The entry's name in the Secret.")


class EnvSource(Declared):
    """Where a variable's value comes from."""

    secret_key_ref: SecretKey


class EnvVar(Declared):
    """For libraries; what sftjob itself does is told by the spec alone."""

    model_config = rules(VALUE_OR_SOURCE, NOT_VALUE_AND_SOURCE, SECRET_IS_NAMED, VARIABLE_IS_FREE)

    name: str = Field(
        max_length=253, pattern=VARIABLE, description=f"Not beginning with {' or '.join(RESERVED_VARIABLES)}."
    )
    value: str | None = Field(default=None, max_length=4096, description="Everyone who may read the job reads it too.")
    value_from: EnvSource | None = Field(
        default=None, description="Instead of `value`. With `sft run`, its own environment must have the variable."
    )

    @model_validator(mode="after")
    def _source(self, info: ValidationInfo) -> Self:
        if (self.value is None) == (self.value_from is None):
            raise ValueError((VALUE_OR_SOURCE if self.value is None else NOT_VALUE_AND_SOURCE).told())
        # Not of a stored job: it may be older than this rule, and run.
        if self.value is not None and self.name in SECRET_VARIABLES and info.context == NEW:
            raise ValueError(SECRET_IS_NAMED.told(name=self.name))
        if self.name.startswith(RESERVED_VARIABLES):
            raise ValueError(VARIABLE_IS_FREE.told(name=self.name))
        return self


class ComputeSpec(Declared):
    """How many, and where. With `sft run` only `nodes`, `processesPerNode` and `env` count."""

    nodes: int = Field(default=1, ge=1, le=1024, description="Launchers, one a node.")
    processes_per_node: int = Field(default=1, ge=1, le=64, description="Ranks a node: its GPUs, or 1 on a CPU.")
    image: str | None = Field(
        default=None,
        max_length=512,
        pattern=IMAGE,
        description="The pods' image. Absent: the trainer's, as the operator names it.",
    )
    image_pull_secrets: list[SecretReference] = Field(
        default=[], max_length=8, description="Secrets with the image registry's passwords."
    )
    resources: ResourcesSpec = ResourcesSpec()
    node_selector: dict[QualifiedName, LabelValue] = Field(
        default={}, max_length=32, description="Labels that a node must have."
    )
    tolerations: list[TolerationSpec] = Field(default=[], max_length=32, description="Taints that a node may have.")
    priority_class_name: ObjectName | None = Field(
        default=None, description="Whom the job's pods may displace, and who displaces them."
    )
    env: list[EnvVar] = Field(
        default=[], max_length=64, description="Variables for libraries, as HF_TOKEN, AWS_ACCESS_KEY_ID and NCCL_DEBUG."
    )

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


class QueueSpec(Declared):
    """A queue of Kueue that decides when the job runs. With `sft run` there is none."""

    name: Label = Field(
        description="Of a LocalQueue in the job's namespace. Who stands first is told by `compute.priorityClassName`."
    )


class RunPolicySpec(Declared):
    """When to stop and how often to begin again; all that may be changed after creation."""

    model_config = rules(SILENCE_CAN_BE_SEEN)

    suspend: bool = Field(default=False, description="Save and stop; false again goes on.")
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
        BUCKET_STORAGE_IS_OF_ONE_NODE,
        BATCH_IS_DIVISIBLE,
        BEST_IS_OF_CHECKPOINTS,
        BEST_IS_OF_EVALUATED_CHECKPOINTS,
        LORA_NEEDS_A_MODEL,
        ADAPTER_NEEDS_LORA,
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
    def _sections_together(self) -> Self:
        problems = []
        if self.script and self.output is None and self.checkpoint.storage is None:
            problems.append(STORAGE_FROM_SOMEWHERE.told())
        storage = self.checkpoint.storage or (self.outputs[0].uri if self.outputs else "")
        if storage.startswith(S3) and self.output is None:
            problems.append(BUCKET_STORAGE_NEEDS_AN_OUTPUT.told())
        if storage.startswith(S3) and self.compute.nodes > 1:
            problems.append(BUCKET_STORAGE_IS_OF_ONE_NODE.told(nodes=self.compute.nodes))
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
        if not problems and (too_long := self._too_long()):
            problems.append(too_long)
        if problems:
            raise ValueError("\n".join(problems))
        return self

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
