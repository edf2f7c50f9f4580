"""What the data is and how it is packed: options of the Python API, with XTuner V1's names.

Written by users in their script, or by the launcher from a job's `spec.data`; read by `prepare`.
"""

from pathlib import Path
from typing import Annotated, Any, Protocol, Self, runtime_checkable

from pydantic import Field, InstanceOf, model_validator

from sftjob.base import Declared
from sftjob.forms import ROW_FIELDS, Column, RowField
from sftjob.options import BadLineBudget, EvaluationOptions, Overlong, PackLevel, RowFormat
from sftjob.sources import refuse_columns_of_no_format


class DatasetConfig(Declared):
    """A file of rows, or a folder of such files."""

    name: str = Field(min_length=1, max_length=63, description="For messages and counts.")
    anno_path: Path = Field(
        description="JSONL, JSON (one array), Parquet or Arrow, by its ending; JSONL where that is unknown. A folder: "
        "all files in it and in its folders with such an ending, by their paths."
    )
    format: RowFormat = Field(default="auto", description="Of its rows; auto: what the first one has.")
    columns: dict[RowField, Column] = Field(
        default={},
        max_length=len(ROW_FIELDS),
        description="For fields of one such format the names that its rows have in their place.",
    )
    cache_dir: Path | None = Field(default=None, description="Folder of its tokenised form. Absent: the run's own.")
    sample_ratio: float = Field(
        default=1.0, gt=0, le=100, description="Below 1: a seeded fraction. Above 1: repeated that often."
    )

    @model_validator(mode="after")
    def _columns_are_of_its_format(self) -> Self:
        refuse_columns_of_no_format(self.columns, row_format=self.format)
        return self


class OpenaiTokenizeFunctionConfig(Declared):
    """How a chat becomes tokens, of which the assistant's are trained."""

    chat_template: str | None = Field(
        default=None, description="A template of ours (`templates/`) in place of the tokenizer's own."
    )
    max_length: int | None = Field(
        default=None, ge=2, description="Tokens a sample holds at most; never more than `pack_max_length`."
    )


class PretrainTokenizeFunctionConfig(Declared):
    """How a text, the `text` of its row, becomes tokens, all of which are trained."""

    add_eos_token: bool = Field(default=True, description="The tokenizer's eos_token behind each text.")
    add_bos_token: bool = Field(default=False, description="Its bos_token before each text.")
    max_length: int | None = OpenaiTokenizeFunctionConfig.model_fields["max_length"]


@runtime_checkable
class TokenizeFunctionConfig(Protocol):
    """How rows become tokens by a function of a user's own, which gets them as they stand in the file."""

    def build(self, tokenizer: Any) -> Any:
        """A `CachableTokenizeFunction`, or whatever can be called as one."""


class DatasetEntry(Declared):
    """An item of `dataset_config_list`; users write it as a dict."""

    dataset: DatasetConfig
    tokenize_fn: OpenaiTokenizeFunctionConfig | PretrainTokenizeFunctionConfig | InstanceOf[TokenizeFunctionConfig] = (
        OpenaiTokenizeFunctionConfig()
    )

    @model_validator(mode="after")
    def _format(self) -> Self:
        given, tokenize_fn = self.dataset.format, self.tokenize_fn
        if isinstance(tokenize_fn, PretrainTokenizeFunctionConfig) and given not in ("auto", "text"):
            raise ValueError(f"dataset.format: {given!r}, where tokenize_fn is of texts; remove it")
        if self.has_own_function and given != "auto":
            raise ValueError(f"dataset.format: {given!r}, but a tokenize_fn of one's own reads rows itself; remove it")
        if self.has_own_function and self.dataset.columns:
            raise ValueError("dataset.columns: given, but a tokenize_fn of one's own reads rows itself; remove it")
        if isinstance(tokenize_fn, PretrainTokenizeFunctionConfig) and self.dataset.columns.keys() - {"text"}:
            raise ValueError(
                "dataset.columns: names more than `text`, where tokenize_fn is of texts; remove the others"
            )
        return self

    @property
    def has_own_function(self) -> bool:
        return not isinstance(self.tokenize_fn, OpenaiTokenizeFunctionConfig | PretrainTokenizeFunctionConfig)

    @property
    def chat_template(self) -> str | None:
        return self.tokenize_fn.chat_template if isinstance(self.tokenize_fn, OpenaiTokenizeFunctionConfig) else None

    @property
    def max_length(self) -> int | None:
        return None if self.has_own_function else self.tokenize_fn.max_length


class EvaluationConfig(EvaluationOptions):
    """The loss on data that is never trained on. Exactly one of `fraction` and `dataset_config_list`."""

    dataset_config_list: Annotated[list[DatasetEntry], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _source(self) -> Self:
        if self.fraction is None and self.dataset_config_list is None:
            raise ValueError("fraction: missing, as is dataset_config_list; give one of them")
        if self.fraction is not None and self.dataset_config_list is not None:
            raise ValueError("fraction: given together with dataset_config_list; remove one")
        return self


class DataloaderConfig(Declared):
    dataset_config_list: Annotated[list[DatasetEntry], Field(min_length=1)]
    pack_level: PackLevel = Field(
        default="soft",
        description="soft: several whole samples a pack. hard: full packs, whose ends cut samples. none: one sample.",
    )
    pack_max_length: int = Field(default=4096, ge=8, le=1_048_576, description="Tokens a pack holds at most.")
    overlong: Overlong = Field(default="truncate", description="What happens to a sample that is too long.")
    bad_line_budget: BadLineBudget = 0
    evaluation: EvaluationConfig | None = None
    num_workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that tokenise a large file side by side; a tokenize_fn of one's own runs in this one.",
    )

    @model_validator(mode="after")
    def _one_template(self) -> Self:
        if len(self._chat_templates) > 1:
            told = ", ".join(sorted(name or "the tokenizer's own" for name in self._chat_templates))
            raise ValueError(
                f"dataset_config_list: chats are written by several templates ({told}), but the trained model speaks "
                "one; give each tokenize_fn the same chat_template"
            )
        return self

    @property
    def _chat_templates(self) -> set[str | None]:
        return {
            entry.chat_template
            for entry in self.dataset_config_list
            if isinstance(entry.tokenize_fn, OpenaiTokenizeFunctionConfig) and entry.dataset.format != "text"
        }

    @property
    def chat_template(self) -> str | None:
        """The one of all its chats, by name; None is the tokenizer's own."""
        return next(iter(self._chat_templates), None)

    def max_length(self, entry: DatasetEntry) -> int:
        """Tokens that a sample of this dataset may have."""
        return min(entry.max_length or self.pack_max_length, self.pack_max_length)
