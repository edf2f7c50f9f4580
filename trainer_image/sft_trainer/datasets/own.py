"""Tokenize functions of a user's own.

A dataset's `tokenize_fn` may be any object whose `build(tokenizer)` gives a function of a row. It is called in the
process that trains, so it need not be importable anywhere else, and what it makes is cached under its name and its
`hash()`. Called by `open_tokens`.

T tokens of a sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sft_trainer.datasets.rows import Fault, Row, Tokens
from sftjob.failure import JobFailure, Reason

_NOT_TRAINED = -100
_MOST = np.iinfo(np.uint32).max


class CachableTokenizeFunction(ABC):
    """To derive from, for who likes to."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def __call__(self, item: Any) -> Mapping[str, Any]:
        """`item` is a row as JSON has it. Out: `input_ids` [T], `labels` [T], not shifted: the token itself where it is
        trained, -100 where it isn't; `num_tokens`, which is T. What it raises makes a bad row of this one.
        """

    @abstractmethod
    def hash(self) -> str:
        """Stands for all that changes what it makes of a row, its own code too."""


def identity(function: Any) -> str:
    """For the cache's key. Raises JobFailure."""
    name = type(function).__qualname__
    if not callable(function):
        raise _broken(name, "can't be called with a row; give it __call__")
    if not callable(getattr(function, "hash", None)):
        raise _broken(name, "has no hash(), under which its tokens are cached; derive it from CachableTokenizeFunction")
    return f"{name}:{function.hash()}"


def tokens_by(function: Callable[[Any], Any]) -> Callable[[list[Row | Fault]], Iterator[Tokens | Fault]]:
    def tokens_of(rows: list[Row | Fault]) -> Iterator[Tokens | Fault]:
        for row in rows:
            yield row if isinstance(row, Fault) else _tokens(function, row)

    return tokens_of


def _tokens(function: Callable[[Any], Any], row: Row) -> Tokens | Fault:
    """Raises JobFailure for a function whose answers are none."""
    name = type(function).__qualname__
    try:
        made = function(row.value)
    except Exception as error:  # a user's code may raise anything
        return Fault(row.line, f"(line): {name} raises {type(error).__name__}: {error}; correct the row, or it")
    missing = [key for key in ("input_ids", "labels") if not isinstance(made, Mapping) or key not in made]
    if missing:
        raise _broken(name, f"gives no {missing[0]}; return a dict of input_ids and labels")
    ids, labels = (np.asarray(made[key]) for key in ("input_ids", "labels"))
    if ids.ndim != 1 or ids.shape != labels.shape or made.get("num_tokens", len(ids)) != len(ids):
        shapes = f"{ids.shape}, {labels.shape} and {made.get('num_tokens', len(ids))}"
        raise _broken(name, f"gives input_ids, labels and num_tokens of {shapes}; they must be of one length")
    trained = labels != _NOT_TRAINED
    if len(ids) and (not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() > _MOST):
        raise _broken(name, "gives input_ids that are no tokens; return whole numbers from 0 on")
    if not np.array_equal(labels[trained], ids[trained]):
        raise _broken(name, "gives labels that are not the tokens at their places; return input_ids or -100, unshifted")
    trained[:1] = False  # nothing stands before the first token to predict it from
    if not trained.any():
        return Fault(row.line, f"(line): {name} trains no token of it; correct the row, or it")
    return Tokens(row.line, ids.astype(np.uint32), trained)


def _broken(name: str, what: str) -> JobFailure:
    return JobFailure(Reason.INVALID_CONFIGURATION, f"tokenize_fn: {name} {what}")
