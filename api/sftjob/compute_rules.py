"""As `rules.py`, of the section `compute`: what its variables, tolerations and amounts must fulfil together."""

from sftjob.names import RESERVED_VARIABLES, SECRET_VARIABLES
from sftjob.rules import MISSING, Rule

VALUE_OR_SOURCE = Rule(
    "value",
    "has(self.value) || has(self.valueFrom)",
    "missing, as is valueFrom; give one of them",
    reason=MISSING,
)
NOT_VALUE_AND_SOURCE = Rule(
    "value",
    "!has(self.value) || !has(self.valueFrom)",
    "given together with valueFrom; give one of them",
)
SECRET_IS_NAMED = Rule(
    "value",
    f"!has(self.value) || !(self.name in {list(SECRET_VARIABLES)})",
    "given for {name}, and everyone who may read the job would read it; use valueFrom, with a Secret",
    {"name": "self.name"},
)
VARIABLE_IS_FREE = Rule(
    "name",
    " && ".join(f"!self.name.startsWith('{prefix}')" for prefix in RESERVED_VARIABLES),
    "'{name}' is set by sftjob; remove it",
    {"name": "self.name"},
)
VARIABLE_NAMES_DIFFER = Rule(
    "env",
    "!has(self.env) || self.env.all(one, self.env.exists_one(other, other.name == one.name))",
    "the name '{name}' is used twice; give each variable once",
    {"name": "self.env.filter(one, !self.env.exists_one(other, other.name == one.name))[0].name"},
)

KEY_OR_EVERY_TAINT = Rule(
    "key",
    "has(self.key) || self.operator == 'Exists'",
    "missing with the operator Equal; name a taint's key, or use the operator Exists for every taint",
    reason=MISSING,
)
NOT_VALUE_AND_EXISTS = Rule(
    "value",
    "!has(self.value) || self.value == '' || self.operator != 'Exists'",
    "given together with the operator Exists, which takes every value; remove it, or use the operator Equal",
)
SECONDS_UNDER_NO_EXECUTE = Rule(
    "tolerationSeconds",
    "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
    "given without the effect NoExecute, the only one that ends pods; give both, or remove it",
)

_ACCELERATOR = "(name.contains('/') && !name.contains('kubernetes.io/'))"


def _amount(of: str, name: str = "name") -> str:
    """In CEL: a whole number, or a text whose form another rule checks."""
    return f"string(self.{of}[{name}])"


_BOTH_ARE_AMOUNTS = f"isQuantity({_amount('requests')}) && isQuantity({_amount('limits')})"
_COMPARED = f"quantity({_amount('requests')}).compareTo(quantity({_amount('limits')}))"
_HAS_LIMIT = "has(self.limits) && name in self.limits"
_UNLIKE_ITS_LIMIT = f"{_ACCELERATOR} && !({_HAS_LIMIT} && (!({_BOTH_ARE_AMOUNTS}) || {_COMPARED} == 0))"
_OVER_ITS_LIMIT = f"!{_ACCELERATOR} && {_HAS_LIMIT} && {_BOTH_ARE_AMOUNTS} && {_COMPARED} > 0"
_NOT_WHOLE = f"{_ACCELERATOR} && {_amount('limits')}.matches('[.m]')"


def _first(of: str, broken: str) -> str:
    return f"self.{of}.filter(name, {broken})[0]"


ACCELERATORS_ARE_LIMITED = Rule(
    "requests",
    f"!has(self.requests) || self.requests.all(name, !({_UNLIKE_ITS_LIMIT}))",
    "{name} is not in limits with the same amount; name it in limits alone, which requests it too",
    {"name": _first("requests", _UNLIKE_ITS_LIMIT)},
)
ACCELERATORS_ARE_WHOLE = Rule(
    "limits",
    f"!has(self.limits) || self.limits.all(name, !({_NOT_WHOLE}))",
    "{amount} of {name} is not written as a whole number; write it without a dot and without m",
    {
        "amount": _amount("limits", _first("limits", _NOT_WHOLE)),
        "name": _first("limits", _NOT_WHOLE),
    },
)
REQUESTS_FIT_LIMITS = Rule(
    "requests",
    f"!has(self.requests) || self.requests.all(name, !({_OVER_ITS_LIMIT}))",
    "{asked} of {name} is more than its limit, {most}; request at most that, or raise the limit",
    {
        "asked": _amount("requests", _first("requests", _OVER_ITS_LIMIT)),
        "name": _first("requests", _OVER_ITS_LIMIT),
        "most": _amount("limits", _first("requests", _OVER_ITS_LIMIT)),
    },
)
