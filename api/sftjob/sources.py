"""What a job reads: the sections `script`, `model` and `data` of its spec, as users write them.

`spec.py` puts them together with the others, and checks what one section can't know of another.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Self, TypeVar

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator
from pydantic.alias_generators import to_camel

from sftjob.base import NEW, Declared
from sftjob.forms import (
    ARGUMENT_FORMS,
    ARGUMENT_PLACE,
    DATA_URI_FORMS,
    MODEL_URI_FORMS,
    ROW_FIELDS,
    SCRIPT_URI_FORMS,
    WHOLE_DATASET,
    Column,
    Configuration,
    DataUri,
    Label,
    ModelUri,
    Revision,
    RowField,
    ScriptUri,
    Split,
    formats_with,
)
from sftjob.names import HUB
from sftjob.options import (
    BadLineBudget,
    EvaluationOptions,
    Overlong,
    PackLevel,
    RowFormat,
)
from sftjob.presets import PRESETS, counts_that_do_not_fit
from sftjob.rules import (
    ARGUMENTS_HAVE_A_FORM,
    COLUMNS_ARE_OF_A_FORMAT,
    CONFIG_OF_A_WHOLE_DATASET,
    DATASET_NAMES_DIFFER,
    EVALUATION_DATA_FROM_SOMEWHERE,
    MODEL_OR_PRESET,
    NOT_FRACTION_AND_DATASETS,
    PRESET_IS_KNOWN,
    REVISION_OF_A_HUB,
    SPLIT_OF_A_WHOLE_DATASET,
    TOKENIZER_FROM_SOMEWHERE,
    overrides_fit_the_preset,
    overrides_need_a_preset,
    rules,
)

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
            own, replaced = PRESETS[self.preset]().model_dump(), self.overrides.model_dump(exclude_none=True)
            unknown = replaced.keys() - own.keys()
            broken = [rule for names, rule in _OVERRIDES_FIT_THE_PRESET if unknown.intersection(names)]
            problems += [rule.told(preset=self.preset) for rule in broken]
            # The API server would have to know every preset's numbers.
            counts = own | {name: value for name, value in replaced.items() if name in own}
            problems += [f"overrides.{told}" for told in counts_that_do_not_fit(counts, spelled=to_camel)]
        if self.load_from is None and self.preset is None:
            problems.append(MODEL_OR_PRESET.told())
        if self.load_from is None and self.tokenizer is None:
            problems.append(TOKENIZER_FROM_SOMEWHERE.told())
        if self.preset is None and self.overrides.to_json_dict():
            problems.append(_OVERRIDES_NEED_A_PRESET.told())
        if problems:
            raise ValueError("\n".join(problems))
        return self


def refuse_columns_of_no_format(columns: Mapping[str, str], *, row_format: str) -> None:
    """Raises ValueError."""
    possible = formats_with(columns)
    if not possible or row_format not in ("auto", *possible):
        raise ValueError(COLUMNS_ARE_OF_A_FORMAT.told(format=row_format))


class DatasetSpec(Declared):
    """Rows: chats or texts."""

    model_config = rules(
        REVISION_OF_A_HUB, CONFIG_OF_A_WHOLE_DATASET, SPLIT_OF_A_WHOLE_DATASET, COLUMNS_ARE_OF_A_FORMAT
    )

    name: Label = Field(description="For messages and counts.")
    uri: DataUri = Field(
        description="JSONL, JSON (one array), Parquet or Arrow, by its ending, or a folder of such files, at any "
        f"depth: {DATA_URI_FORMS}. What is read of a whole dataset of a hub its card tells, or the files' names."
    )
    revision: Revision | None = _REVISION
    config: Configuration | None = Field(
        default=None, description="Of a whole dataset of a hub: one of its configurations. Absent: its default."
    )
    split: Split | None = Field(
        default=None, description="Of a whole dataset of a hub: one of the configuration's splits. Absent: train."
    )
    format: RowFormat = Field(
        default="auto",
        description="Of the rows: messages (OpenAI), sharegpt, prompt-completion, alpaca, or text. "
        "auto: what the first row has.",
    )
    columns: dict[RowField, Column] | None = Field(
        default=None,
        max_length=len(ROW_FIELDS),
        description="For fields of one such format the names that the rows have in their place, as "
        "`instruction: question` and `output: answer`. auto is then among the formats that have these fields.",
    )
    sample_ratio: float = Field(
        default=1.0, gt=0, le=100, description="Below 1: a seeded fraction. Above 1: repeated that often."
    )

    _check = model_validator(mode="after")(_revision_is_of_a_hub)

    @property
    def place(self) -> tuple[str | None, ...]:
        """All that says which rows are read."""
        return self.uri.rstrip("/"), self.revision, self.config, self.split

    @model_validator(mode="after")
    def _columns_are_of_its_format(self) -> Self:
        refuse_columns_of_no_format(self.columns or {}, row_format=self.format)
        return self

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if re.fullmatch(WHOLE_DATASET, self.uri):
            return self
        broken = [self.config and CONFIG_OF_A_WHOLE_DATASET, self.split and SPLIT_OF_A_WHOLE_DATASET]
        if problems := [rule.told(uri=self.uri) for rule in broken if rule]:
            raise ValueError("\n".join(problems))
        return self


class EvaluationSpec(EvaluationOptions):
    """The loss on data that is never trained on. The checkpoint with the lowest one is kept besides the newest."""

    model_config = rules(EVALUATION_DATA_FROM_SOMEWHERE, NOT_FRACTION_AND_DATASETS)

    datasets: list[DatasetSpec] = Field(
        default=[],
        max_length=32,
        description="Files of chats to evaluate on, instead of `fraction`: none that is trained on.",
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
        "written by qwen3; the others refuse rows that have them. As most templates that know thoughts, it leaves them "
        "out where more questions follow, and such answers are counted: to train them, end a row with each.",
    )
    evaluation: EvaluationSpec | None = Field(default=None, description="Absent: none.")

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [dataset.name for dataset in self.datasets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(DATASET_NAMES_DIFFER.told(name=name))
        return self

    @model_validator(mode="after")
    def _evaluates_what_is_not_trained(self, info: ValidationInfo) -> Self:
        """By URI. Of what is the same under another one, and on a cluster of any, the prepare stage tells."""
        # Jobs from before this rule are still read.
        if info.context != NEW or self.evaluation is None:
            return self
        for index, held in enumerate(self.evaluation.datasets):
            for number, trained in enumerate(self.datasets):
                if trained.place == held.place:
                    raise ValueError(
                        f"evaluation.datasets[{index}].uri: {held.uri} is datasets[{number}] too, which is trained on; "
                        "name another file, or use evaluation.fraction"
                    )
        return self

    @property
    def sources(self) -> dict[str, DatasetSpec]:
        """Every dataset, of training and of evaluation, by its path in the spec."""
        listed = {f"spec.data.datasets[{index}]": dataset for index, dataset in enumerate(self.datasets)}
        for index, dataset in enumerate(self.evaluation.datasets if self.evaluation else []):
            listed[f"spec.data.evaluation.datasets[{index}]"] = dataset
        return listed
