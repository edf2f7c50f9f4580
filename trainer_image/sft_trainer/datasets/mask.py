"""Which characters, and with them which tokens, of a rendered chat are trained.

In: a chat, its rendered text, a `Renderer`. Out: a `Turn` for each trained message, then a flag per token. Called by
`tokenize`. Nothing is guessed: a template that fits none of the rules is refused with `Unmaskable`.

A turn is found by comparing renderings of parts of the chat, so that any template works that writes messages one
after the other. A template with generation tags tells its turns itself (transformers' assistant mask).
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_trainer.datasets.messages import REASONING, Messages
from sft_trainer.datasets.render import Renderer, TemplateRefused

_THINK_OPENER = re.compile(r"<think>\s*(</think>\s*)?\Z")
"""What a generation prompt may add behind the role header on a model's behalf."""
_THOUGHTS = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_WHITE_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Turn:
    """Where a trained message stands in the text: from behind its role header."""

    start: int
    end: int
    """Behind the turn where the template ends it, else behind the message's own content: what follows there ends it."""
    ends_at_content: bool


class Unmaskable(Exception):
    """This message's tokens can't be told from the template's."""


def count_thoughtless(messages: Messages, trained: list[bool], *, render: Callable[[], str]) -> int:
    """Of the trained messages with thoughts, those whose thoughts are not in the text that `render` gives.

    Qwen3's template and its like write thoughts behind the last question alone, DeepSeek R1's none at all.
    """
    thoughts = [_thoughts(message) for message, is_trained in zip(messages, trained, strict=True) if is_trained]
    if not any(thoughts):
        return 0
    text = render()
    return sum(any(thought not in text for thought in of_one) for of_one in thoughts)


def _thoughts(message: dict[str, Any]) -> list[str]:
    found = [message.get(REASONING, ""), *_THOUGHTS.findall(message["content"])]
    return [thought.strip() for thought in found if thought.strip()]


def find_turns(renderer: Renderer, messages: Messages, trained: list[bool], *, full: str) -> list[Turn]:
    """Raises Unmaskable, or TemplateRefused where the template refuses a part of the chat."""
    return [_turn(renderer, messages, index, full) for index, is_trained in enumerate(trained) if is_trained]


def trained_by_offsets(
    turns: list[Turn], *, ids: list[int], offsets: list[tuple[int, int]], text: str, added_ids: frozenset[int]
) -> np.ndarray:
    """[T] bool. Of each turn everything up to its end-of-turn token; a token that begins before the turn is not."""
    bounds = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    ends = bounds[:, 1]
    # Byte-level tokenizers leave a token's leading spaces out of its offsets: it begins where the one before ended.
    starts = np.minimum(bounds[:, 0], np.concatenate(([0], ends[:-1])))
    trained = np.zeros(len(ids), dtype=bool)
    for turn in turns:
        first = int(np.searchsorted(starts, turn.start))
        if turn.ends_at_content:
            last = _end_of_turn(ids, starts, added_ids, text=text, behind=turn.end)
        else:
            last = _last_of_turn(ids, starts, ends, added_ids, text=text, turn=turn)
        trained[first:last] = True
    return trained


def trained_by_tags(tagged: list[bool], *, trained: list[bool], roles: list[str]) -> np.ndarray:
    """[T] bool: the template's own mask, without the assistant turns whose `loss` is false."""
    mask = np.asarray(tagged, dtype=bool)
    wanted = [is_trained for is_trained, role in zip(trained, roles, strict=True) if role == "assistant"]
    if all(wanted):
        return mask
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    if len(edges) != 2 * len(wanted):
        raise Unmaskable("loss: the template's generation tags don't tell the turns apart; remove `loss: false`")
    for is_trained, begin, end in zip(wanted, edges[::2], edges[1::2], strict=True):
        mask[begin:end] &= is_trained
    return mask


def _turn(renderer: Renderer, messages: Messages, index: int, full: str) -> Turn:
    start = _start(renderer, messages, index, full)
    through = renderer.text(messages[: index + 1]) if index + 1 < len(messages) else full
    if full.startswith(through):
        return Turn(start, len(through), ends_at_content=not renderer.ends_turns)
    if "tool_calls" in messages[index]:
        return Turn(start, _end_of_calls(renderer, messages, index, full, start=start), ends_at_content=True)
    # The template writes this turn otherwise once others follow (Qwen3 drops its thoughts): see how far the text
    # stays the same when the content goes on.
    end = _content_end(renderer, messages, index, full)
    if end < start:
        raise Unmaskable(f"messages[{index}]: the chat template writes it in no place of its own; {_REMEDY}")
    return Turn(start, end, ends_at_content=True)


def _end_of_calls(renderer: Renderer, messages: Messages, index: int, full: str, *, start: int) -> int:
    """Calls stand behind the content: they end where the text becomes the same again as with other content alone."""
    plain = {"role": messages[index]["role"], "content": _sentinel(full)}
    unclear = Unmaskable(f"messages[{index}]: where its calls end can't be told from the chat template; {_REMEDY}")
    try:
        other = renderer.text([*messages[:index], plain, *messages[index + 1 :]])
    except TemplateRefused:
        # A tool's answer without a call before it.
        raise unclear from None
    end = len(full) - _common_prefix(full[::-1], other[::-1])
    if end < start or not other.endswith(_sentinel(full) + full[end:]):
        raise unclear
    return end


def _start(renderer: Renderer, messages: Messages, index: int, full: str) -> int:
    prompted = renderer.text(messages[:index], add_generation_prompt=True) if index else ""
    for prompt in _prompts(prompted) if index else []:
        if full.startswith(prompt):
            if (
                not renderer.has_generation_prompt
                and full[len(prompt) : _content(renderer, messages, index, full)].strip()
            ):
                raise Unmaskable(
                    f"messages[{index}]: the chat template knows no generation prompt, so that its role header "
                    "can't be told from the answer; use another chatTemplate"
                )
            return len(prompt)
    if index and not renderer.has_generation_prompt and (start := _behind_question(renderer, messages, index, full)):
        return start
    return _start_at_content(renderer, messages, index, full)


def _behind_question(renderer: Renderer, messages: Messages, index: int, full: str) -> int | None:
    """For a template without role headers that moves text about, as Mistral's write the system prompt into the last
    question: the answer must stand behind what closes the message before it, as it does where a model is asked.
    """
    asked = renderer.text(messages[:index])
    closing = asked[_content_end(renderer, messages[:index], index - 1, asked) :]
    start = _content_end(renderer, messages, index - 1, full) + len(closing)
    content = _content(renderer, messages, index, full)
    is_there = closing.strip() and full.endswith(closing, 0, start) and start <= content
    return start if is_there and not full[start:content].strip() else None


def _start_at_content(renderer: Renderer, messages: Messages, index: int, full: str) -> int:
    """For a first message, and where the text before depends on what follows: the content must stand right behind
    the very header that asks for an answer.
    """
    plain, prompted = renderer.text(messages), renderer.text(messages, add_generation_prompt=True)
    headers = _prompts(prompted[len(plain) :]) if prompted.startswith(plain) else []
    content = _content(renderer, messages, index, full)
    if not any(header.strip() and full.endswith(header, 0, content) for header in headers):
        raise Unmaskable(
            f"messages[{index}]: where this turn begins can't be told from the chat template's text; {_REMEDY}"
        )
    return content


_REMEDY = "use another chatTemplate, or let user and assistant alternate from a user message on"


def _content(renderer: Renderer, messages: Messages, index: int, full: str) -> int:
    """Where the text of this message's content begins."""
    moved = _with_content(messages, index, _sentinel(full) + messages[index]["content"])
    return _common_prefix(full, renderer.text(moved))


def _content_end(renderer: Renderer, messages: Messages, index: int, full: str) -> int:
    """Behind the text of this message's content."""
    longer = _with_content(messages, index, messages[index]["content"] + _sentinel(full))
    return _common_prefix(full, renderer.text(longer))


def _prompts(prompt: str) -> list[str]:
    """What may stand before an answer: the whole generation prompt, or it without a think block that it opens."""
    without = _THINK_OPENER.sub("", prompt)
    return [prompt] if without == prompt else [prompt, without]


def _end_of_turn(ids: list[int], starts: np.ndarray, added_ids: frozenset[int], *, text: str, behind: int) -> int:
    """Index behind the end-of-turn token, which must follow the content with at most white space between."""
    place = _WHITE_SPACE.match(text, behind).end()
    for token in range(int(np.searchsorted(starts, behind)), len(ids)):
        if ids[token] in added_ids and starts[token] <= place:
            return token + 1
        if starts[token] > place:
            break
    raise Unmaskable(f"messages: no end-of-turn token follows an assistant's content in the chat template; {_REMEDY}")


def _last_of_turn(
    ids: list[int], starts: np.ndarray, ends: np.ndarray, added_ids: frozenset[int], *, text: str, turn: Turn
) -> int:
    """Index behind the turn's last added token if only white space follows it there, else behind its last token."""
    last = int(np.searchsorted(ends, turn.end, side="right"))
    for token in range(last - 1, -1, -1):
        if starts[token] < turn.start:
            break
        if ids[token] in added_ids:
            return token + 1
        if text[starts[token] : ends[token]].strip():
            break
    return last


def _with_content(messages: Messages, index: int, content: str) -> Messages:
    return [*messages[:index], {**messages[index], "content": content}, *messages[index + 1 :]]


def _sentinel(text: str) -> str:
    """A private-use character that the text does not hold."""
    return next(character for character in map(chr, itertools.count(0xE000)) if character not in text)


def _common_prefix(left: str, right: str) -> int:
    """How many characters they share from the front, by halving: a loop over characters would be slow."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
