"""Samples as tokens: chats by the chat template, passages as they stand.

In: a few rows' samples, each with its line. Out: in their order, token ids and a flag for each, or the `Fault` of that
line. Made once a process; `tokenize` calls it. A file of passages needs no chat template.

T tokens of a sample.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from sft_trainer.datasets.formats import Chat, Passage
from sft_trainer.datasets.mask import (
    Turn,
    Unmaskable,
    count_thoughtless,
    find_turns,
    trained_by_offsets,
    trained_by_tags,
)
from sft_trainer.datasets.render import Renderer, TemplateRefused
from sft_trainer.datasets.rows import Fault, Tokens
from sft_trainer.datasets.values import Refused
from sftjob.base import Record
from sftjob.failure import JobFailure, Reason


class Sample(NamedTuple):
    line: int
    content: Chat | Passage


class TextEnds(Record):
    """Special tokens around a passage, in place of those that the tokenizer puts around any text."""

    begin: bool
    end: bool


class _Rendered(NamedTuple):
    text: str
    turns: list[Turn]
    thoughtless: int


class SampleTokenizer:
    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None, ends: TextEnds | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._ends = ends

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self._tokenizer, chat_template=self._chat_template)

    def tokens(self, rows: list[Sample | Fault]) -> Iterator[Tokens | Fault]:
        """Raises JobFailure where the tokenizer or its template can't be used."""
        written = [row if isinstance(row, Fault) else self._written(row) for row in rows]
        texts = [row.text for row in written if isinstance(row, _Rendered)]
        # The template has written every special token that belongs there, a BOS too: none may be added.
        encodings = iter(self._tokenizer(texts, add_special_tokens=False, verbose=False).encodings if texts else ())
        for source, row in zip(rows, written, strict=True):
            if not isinstance(row, _Rendered):
                yield row
                continue
            assert isinstance(source, Sample)
            encoding = next(encodings)
            try:
                trained = trained_by_offsets(
                    row.turns,
                    ids=encoding.ids,
                    offsets=encoding.offsets,
                    text=row.text,
                    added_ids=self._renderer.added_ids,
                )
                yield _checked(source, encoding.ids, trained, thoughtless=row.thoughtless)
            except Unmaskable as error:
                yield _fault(source, str(error))

    def _written(self, sample: Sample) -> Tokens | Fault | _Rendered:
        """A rendered chat is tokenised later: many at once are faster."""
        content = sample.content
        if isinstance(content, Passage):
            return _checked(sample, *self._of_passage(content))
        try:
            renderer, messages = self._renderer.fitted(content.messages, content.tools)
            lost = count_thoughtless(content.messages, content.trained, render=lambda: renderer.text(messages))
            if renderer.has_generation_tags:
                ids, tagged = renderer.assistant_mask(messages)
                roles = [message["role"] for message in messages]
                trained = trained_by_tags(tagged, trained=content.trained, roles=roles)
                return _checked(sample, ids, trained, thoughtless=lost)
            text = renderer.text(messages)
            turns = find_turns(renderer, messages, content.trained, full=text)
            if content.trained[-1] and not renderer.ends_turns:
                text += renderer.header_behind(messages[-1])
            return _Rendered(text, turns, lost)
        except TemplateRefused as error:
            problem = f"messages: the chat template refuses them: {error}; change them, or use another chatTemplate"
            return _fault(sample, problem)
        except (Unmaskable, Refused) as error:
            return _fault(sample, str(error))

    def _of_passage(self, passage: Passage) -> tuple[list[int], np.ndarray]:
        """Ids, and which of them are trained.

        With the special tokens that the tokenizer puts around any text, and one end-of-text token behind it; or with
        those that `ends` says. A token across the boundary of prompt and completion is not trained, as in a chat.
        """
        text, ends = passage.prompt + passage.completion, self._ends
        encoding = self._tokenizer(text, add_special_tokens=ends is None, verbose=False).encodings[0]
        bounds = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        special = np.asarray(encoding.special_tokens_mask, dtype=bool)
        # As in `trained_by_offsets`: a token begins where the one before ended, spaces that offsets leave out included.
        starts = np.minimum(bounds[:, 0], np.concatenate(([0], bounds[:-1, 1])) if len(bounds) else [])
        ids, trained = list(encoding.ids), list(~special & (starts >= len(passage.prompt)))
        if ends:
            before, after = [self._begin] if ends.begin else [], [self._end] if ends.end else []
            flags = np.concatenate(([False] * len(before), trained, [True] * len(after)))
            return [*before, *ids, *after], flags.astype(bool)
        begin, end = self._tokenizer.bos_token_id, self._end
        if begin is not None and ids[:2] == [begin, begin]:  # the text brought its own
            ids, trained = ids[1:], trained[1:]
        if ids[-1:] == [end]:
            trained[-1] = True
        else:
            ids, trained = [*ids, end], [*trained, True]
        return ids, np.asarray(trained, dtype=bool)

    @property
    def _begin(self) -> int:
        return self._special(self._tokenizer.bos_token_id, "bos_token to begin a text with")

    @property
    def _end(self) -> int:
        return self._special(self._tokenizer.eos_token_id, "eos_token to end a text with")

    def _special(self, token: int | None, what: str) -> int:
        if token is None:
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"{self._tokenizer.name_or_path}: the tokenizer has no {what}; name one in its tokenizer_config.json",
            )
        return token


def _checked(sample: Sample, ids: list[int], trained: np.ndarray, *, thoughtless: int = 0) -> Tokens | Fault:
    trained[:1] = False  # nothing stands before the first token to predict it from
    if trained.any():
        return Tokens(sample.line, np.asarray(ids, dtype=np.uint32), trained, thoughtless)
    if isinstance(sample.content, Chat):
        return _fault(sample, "messages: no token of this chat would be trained; give an assistant turn some content")
    return Fault(
        sample.line, f"{sample.content.answers}: no token of it would be trained; it needs one behind its first"
    )


def _fault(sample: Sample, problem: str) -> Fault:
    assert isinstance(sample.content, Chat)
    return Fault(sample.line, sample.content.in_its_words(problem))
