"""What fields of a spec must fulfil together: each rule's sentence once, for pydantic and for the API server.

The validators of `spec.py` and `sources.py` check in Python and speak with `told`; `structural.py` puts `validation()`
into the schema. The rules of `compute.py` are in `compute_rules.py`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict

from sftjob.forms import ARGUMENT_FORMS, ARGUMENT_PLACE, FIELDS_OF_FORMATS, WHOLE_DATASET
from sftjob.names import HUB, S3
from sftjob.presets import PRESETS

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Rule:
    path: str
    """The field to blame, from where the rule stands, as files spell it; empty for the very place."""
    holds: str
    """In CEL; `self` is the place."""
    sentence: str
    """What is found, a semicolon, the remedy; with `{value}` where a value goes."""
    values: Mapping[str, str] = field(default_factory=dict)
    """How CEL says each of these values."""
    reason: str = "FieldValueInvalid"
    """How the API server names the fault."""
    at_creation: bool = False
    """Stored objects needn't keep it when they are changed: of a later rule on fields that can't be changed themselves,
    where it stands at the spec. Further down the API server spares what an update leaves as it is."""

    def told(self, **values: object) -> str:
        """One line, whatever the values are."""
        shown = {name: value if str(value).isprintable() else "..." for name, value in values.items()}
        return f"{self.path}: {self.sentence.format(**shown)}"

    def validation(self) -> dict[str, Any]:
        """An entry of `x-kubernetes-validations`. `message` is for values that no message can hold: line breaks."""
        made: dict[str, Any] = {"rule": self.holds, "message": _PLACEHOLDER.sub("...", self.sentence)}
        if self.at_creation:
            made |= {"rule": f"oldSelf.hasValue() || ({self.holds})", "optionalOldSelf": True}
        if self.values:
            made["messageExpression"] = self._message_expression()
        if self.path:
            made["fieldPath"] = f".{self.path}"
        return made | {"reason": self.reason}

    def _message_expression(self) -> str:
        """`format`, because the API server takes the length of `a + b` for endless where it can't bound one of them."""
        names = _PLACEHOLDER.findall(self.sentence)
        text = _PLACEHOLDER.sub("%s", self.sentence.replace("%", "%%"))
        return f"{text_in_cel(text)}.format([{', '.join(self.values[name] for name in names)}])"


def text_in_cel(text: str) -> str:
    r"""As a literal; raw where it can be: patterns have many `\`."""
    if "'" not in text and "\n" not in text:
        return f"r'{text}'" if "\\" in text else f"'{text}'"
    return json.dumps(text, ensure_ascii=False)


def rules(*given: Rule) -> ConfigDict:
    """Puts a model's rules into its JSON schema."""
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": [rule.validation() for rule in given]})


MISSING = "FieldValueRequired"
"""How the API server names the fault of a field that is not there."""

REVISION_OF_A_HUB = Rule(
    "revision",
    f"!has(self.revision) || self.uri.startsWith('{HUB}')",
    "given, but {uri} is not of a hub; remove it, or use a URI that begins with " + HUB,
    {"uri": "self.uri"},
)


def _is_of_a_whole_dataset(field: str) -> Rule:
    return Rule(
        field,
        f"!has(self.{field}) || self.uri.matches({text_in_cel(WHOLE_DATASET)})",
        "given, but {uri} is not a whole dataset of a hub; remove it, or use hf://datasets/<owner>/<name>",
        {"uri": "self.uri"},
    )


CONFIG_OF_A_WHOLE_DATASET = _is_of_a_whole_dataset("config")
SPLIT_OF_A_WHOLE_DATASET = _is_of_a_whole_dataset("split")
COLUMNS_ARE_OF_A_FORMAT = Rule(
    "columns",
    "!has(self.columns) || "
    + " || ".join(
        f"(self.format in {['auto', name]} && self.columns.all(field, field in {list(fields)}))"
        for name, fields in FIELDS_OF_FORMATS.items()
    ),
    "not all are fields of one format that {format} allows; use those of one: "
    + ", or ".join(f"{', '.join(fields)} ({name})" for name, fields in FIELDS_OF_FORMATS.items()),
    {"format": "self.format"},
)
PRESET_IS_KNOWN = Rule(
    "preset",
    f"!has(self.preset) || self.preset in {list(PRESETS)}",
    f"'{{preset}}' is not known; use one of {', '.join(PRESETS)}",
    {"preset": "self.preset"},
)
MODEL_OR_PRESET = Rule(
    "loadFrom",
    "has(self.loadFrom) || has(self.preset)",
    "missing, as is preset; name a model folder, or a preset to train from scratch",
    reason=MISSING,
)
TOKENIZER_FROM_SOMEWHERE = Rule(
    "tokenizer",
    "has(self.loadFrom) || has(self.tokenizer)",
    "missing, and there is no loadFrom to take it from; name a tokenizer's folder",
    reason=MISSING,
)


def overrides_need_a_preset(fields: Iterable[str]) -> Rule:
    given = " || ".join(f"has(self.overrides.{name})" for name in fields)
    return Rule(
        "overrides",
        f"has(self.preset) || !({given})",
        "given without preset; name the preset whose fields they replace",
    )


def overrides_fit_the_preset(fields: Mapping[str, str]) -> list[tuple[list[str], Rule]]:
    """`fields`: their names in a file, by those of the presets' own. A rule for those that the same presets lack."""
    without = {
        name: [preset for preset, config in PRESETS.items() if name not in config.model_fields] for name in fields
    }
    found = []
    for presets in dict.fromkeys(map(tuple, without.values())):
        alike = [name for name in fields if without[name] == list(presets)]
        aliases = [fields[name] for name in alike]
        given = " || ".join(f"has(self.overrides.{alias})" for alias in aliases)
        rule = Rule(
            "overrides",
            f"!has(self.preset) || !(self.preset in {list(presets)}) || !({given})",
            f"'{{preset}}' has no {', '.join(aliases)}; remove {'them' if aliases[1:] else 'it'}",
            {"preset": "self.preset"},
        )
        if presets:
            found.append((alike, rule))
    return found


DATASET_NAMES_DIFFER = Rule(
    "datasets",
    "self.datasets.all(one, self.datasets.exists_one(other, other.name == one.name))",
    "the name '{name}' is used twice; give each dataset its own",
    {"name": "self.datasets.filter(one, !self.datasets.exists_one(other, other.name == one.name))[0].name"},
)
EVALUATION_DATA_FROM_SOMEWHERE = Rule(
    "fraction",
    "has(self.fraction) || self.datasets.size() > 0",
    "missing, as is datasets; hold out a fraction of the training data, or name datasets",
    reason=MISSING,
)
NOT_FRACTION_AND_DATASETS = Rule(
    "fraction",
    "!has(self.fraction) || self.datasets.size() == 0",
    "given together with datasets; remove one",
)
ONE_LENGTH = Rule(
    "totalStep",
    "!has(self.totalEpoch) || !has(self.totalStep)",
    "given together with totalEpoch; remove one",
)
MOMENTS_CAN_DECAY = Rule(
    "betas",
    "!has(self.moments) || self.moments == 'fp32' || !has(self.betas) || self.betas[1] <= 0.99",
    "with a second beta of {beta} a moment in bf16 never falls again; use at most 0.99, or moments: fp32",
    {"beta": "self.betas[1]"},
)


def lr_ends_below_its_peak(*, lr: float, lr_min: float) -> Rule:
    """Given what each is where it isn't set: a peak below the default minimum is the minimum itself."""
    peak = f"(has(self.optimizer) && has(self.optimizer.lr) ? self.optimizer.lr : {lr!r})"
    return Rule(
        "lrSchedule.lrMin",
        f"!has(self.lrSchedule) || !has(self.lrSchedule.lrMin) || self.lrSchedule.lrMin == {lr_min!r} || "
        f"self.lrSchedule.lrMin <= {peak}",
        "{lr_min} is more than the peak, {lr}; lower it, or raise optimizer.lr",
        {"lr_min": "self.lrSchedule.lrMin", "lr": peak},
    )


_WORLD = "self.compute.nodes * self.compute.processesPerNode"
BATCH_IS_DIVISIBLE = Rule(
    "training.globalBatchSize",
    f"!has(self.training) || !has(self.training.globalBatchSize) || self.training.globalBatchSize % ({_WORLD}) == 0",
    "{batch} is not divisible by the {world} ranks of compute; use a multiple of {world}",
    {"batch": "self.training.globalBatchSize", "world": _WORLD},
)
_EXPORTS_THE_LAST = (
    "!has(self.data) || !has(self.data.evaluation) || !has(self.data.evaluation.exportBest) || "
    "!self.data.evaluation.exportBest"
)
BEST_IS_OF_CHECKPOINTS = Rule(
    "checkpoint.everySteps",
    f"{_EXPORTS_THE_LAST} || has(self.checkpoint.everySteps)",
    "missing, and what is saved each half hour is never the best, so data.evaluation.exportBest has nothing to choose "
    "from; name the steps from one checkpoint to the next, or remove exportBest",
    reason=MISSING,
)
BEST_IS_OF_EVALUATED_CHECKPOINTS = Rule(
    "checkpoint.everySteps",
    f"{_EXPORTS_THE_LAST} || !has(self.checkpoint.everySteps) || "
    "self.checkpoint.everySteps % self.data.evaluation.everySteps == 0",
    "{saved} is not a multiple of the {evaluated} steps of data.evaluation.everySteps, so data.evaluation.exportBest "
    "would know no loss of some checkpoints; use a multiple",
    {"saved": "self.checkpoint.everySteps", "evaluated": "self.data.evaluation.everySteps"},
)
LORA_NEEDS_A_MODEL = Rule(
    "training.lora",
    "!has(self.training) || !has(self.training.lora) || !has(self.model) || has(self.model.loadFrom)",
    "given without model.loadFrom, so there is no trained model to adapt; name one, or remove lora",
)
ADAPTER_NEEDS_LORA = Rule(
    "output",
    "has(self.script) || !has(self.output) || (has(self.training) && has(self.training.lora)) || "
    "self.output.all(one, one.format != 'adapter')",
    "'{uri}' has the format adapter, but training.lora, which makes one, is missing; add it, or use the format hf",
    {"uri": "self.output.filter(one, one.format == 'adapter')[0].uri"},
)


def _folder(uri: str) -> str:
    """In CEL: a place with one slash at its end, so that what begins with it lies in it."""
    return f"({uri}.endsWith('/') ? {uri} : {uri} + '/')"


_FIRST_OUTPUT = "self.output[0].uri"
_CHECKPOINTS = (
    "(has(self.checkpoint.storage) ? self.checkpoint.storage : "
    f"({_FIRST_OUTPUT}.endsWith('/') ? {_FIRST_OUTPUT}.substring(0, {_FIRST_OUTPUT}.size() - 1) : {_FIRST_OUTPUT}) + "
    "'.checkpoints')"
)
_HOLDS_NO_OTHER = f"self.output.exists_one(other, {_folder('other.uri')}.startsWith({_folder('one.uri')}))"
OUTPUTS_LIE_APART = Rule(
    "output",
    f"!has(self.output) || self.output.all(one, {_HOLDS_NO_OTHER})",
    "'{uri}' is given twice, or another output lies in it; give each a folder of its own",
    {"uri": f"self.output.filter(one, !{_HOLDS_NO_OTHER})[0].uri"},
    at_creation=True,
)
_HOLDS_CHECKPOINTS = f"{_folder(_CHECKPOINTS)}.startsWith({_folder('one.uri')})"
CHECKPOINTS_LIE_OUTSIDE_OUTPUTS = Rule(
    "output",
    f"!has(self.output) || self.output.all(one, !{_HOLDS_CHECKPOINTS})",
    "the checkpoints' folder {storage} is or lies in '{uri}'; give the output, or checkpoint.storage, another folder",
    {"storage": _CHECKPOINTS, "uri": f"self.output.filter(one, {_HOLDS_CHECKPOINTS})[0].uri"},
    at_creation=True,
)

SILENCE_CAN_BE_SEEN = Rule(
    "progressDeadlineSeconds",
    "!has(self.progressDeadlineSeconds) || self.progressDeadlineSeconds == 0 || self.progressDeadlineSeconds >= 10",
    "{seconds} is shorter than the time between two reports; use at least 10, or 0 for no limit",
    {"seconds": "self.progressDeadlineSeconds"},
)

MODEL_OR_SCRIPT = Rule(
    "model",
    "has(self.model) || has(self.script)",
    "missing, as is script; name what to start from, or a training script of your own",
    reason=MISSING,
)
DATA_OR_SCRIPT = Rule(
    "data",
    "has(self.data) || has(self.script)",
    "missing, as is script; name the files to train on, or a training script of your own",
    reason=MISSING,
)
OUTPUT_OR_SCRIPT = Rule(
    "output",
    "has(self.output) || has(self.script)",
    "missing; name a folder for the trained model",
    reason=MISSING,
)
_IN_THE_SCRIPT = "given together with script, which says this itself; remove one"
NOT_MODEL_AND_SCRIPT = Rule("model", "!has(self.model) || !has(self.script)", _IN_THE_SCRIPT)
NOT_DATA_AND_SCRIPT = Rule("data", "!has(self.data) || !has(self.script)", _IN_THE_SCRIPT)
NOT_TRAINING_AND_SCRIPT = Rule("training", "!has(self.training) || !has(self.script)", _IN_THE_SCRIPT)
STORAGE_FROM_SOMEWHERE = Rule(
    "checkpoint.storage",
    "!has(self.script) || has(self.output) || has(self.checkpoint.storage)",
    "missing, and there is no output to put it beside; name a folder of this job alone",
    reason=MISSING,
)

_STORAGE = "(has(self.checkpoint.storage) ? self.checkpoint.storage : has(self.output) ? self.output[0].uri : '')"
_IN_A_BUCKET = f"{_STORAGE}.startsWith('{S3}')"
BUCKET_STORAGE_NEEDS_AN_OUTPUT = Rule(
    "output",
    f"has(self.output) || !({_IN_A_BUCKET})",
    "missing, and checkpoint.storage, where the script's model would lie, is in a bucket; name where it goes",
    reason=MISSING,
)

_IS_A_PLACE = " || ".join(f"one.startsWith('{scheme}://')" for scheme in ("pvc", "configMap"))
_HAS_NO_FORM = f"({_IS_A_PLACE}) && !one.matches({text_in_cel(ARGUMENT_PLACE)})"
ARGUMENTS_HAVE_A_FORM = Rule(
    "args",
    f"self.args.all(one, !({_HAS_NO_FORM}))",
    f"'{{argument}}' has the wrong form; use {ARGUMENT_FORMS}, without .. and spaces",
    {"argument": f"self.args.filter(one, {_HAS_NO_FORM})[0]"},
)


def is_immutable(section: str) -> Rule:
    """At the spec: a rule at the field itself is silent when the field is added or removed."""
    return Rule(
        section,
        f"has(self.{section}) == has(oldSelf.{section}) && "
        f"(!has(self.{section}) || self.{section} == oldSelf.{section})",
        "can't be changed after creation; create another job with another name and storage",
        reason="FieldValueForbidden",
    )
