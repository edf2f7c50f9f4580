"""Turns chats into tokens and a flag for each: trained or not.

In: a range of a JSONL file and a `Renderer`. Out: the range's files in a folder, and a `Part` with its counts or the
faults of its lines. `build` calls it in its own process, or through `worker` in several.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sft_trainer.datasets.mask import Turn, Unmaskable, find_turns, trained_by_offsets, trained_by_tags
from sft_trainer.datasets.read import Chat, Fault, LineRange, read_chats
from sft_trainer.datasets.render import Renderer, TemplateRefused
from sftjob.base import Record
from sftjob.options import Overlong

MOST_FAULTS = 10
"""Faults after which a range is given up: enough to see what is wrong with a file."""
_ROWS_AT_ONCE = 64


class Limits(Record):
    max_length: int
    overlong: Overlong


class Part(Record):
    """What became of a range's rows. With faults the counts and files mean nothing."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    faults: list[tuple[int, str]] = []
    """Line and problem."""


def tokenize_range(
    path: Path,
    lines: LineRange,
    *,
    renderer: Renderer,
    limits: Limits,
    folder: Path,
    part: int,
    on_rows: Callable[[int], None],
) -> Part:
    """Writes `tokens-<part>.bin`, `trained-<part>.bin` and `samples-<part>.npy`; tells `on_rows` each few rows done."""
    faults: list[tuple[int, str]] = []
    samples: list[tuple[int, int, bool]] = []
    rows = 0
    with (
        (folder / f"tokens-{part}.bin").open("wb") as tokens_file,
        (folder / f"trained-{part}.bin").open("wb") as flags_file,
    ):
        for batch in _in_batches(read_chats(path, lines)):
            for row in _tokenized(renderer, batch):
                sample = row if isinstance(row, Fault) else _fitted(*row, limits)
                if isinstance(sample, Fault):
                    faults.append((sample.line, sample.problem))
                elif sample is not None:
                    ids, trained, cut = sample
                    tokens_file.write(ids.tobytes())
                    flags_file.write(trained.tobytes())
                    samples.append((len(ids), int(trained.sum()), cut))
            rows += len(batch)
            on_rows(rows)
            if len(faults) >= MOST_FAULTS:
                break
    table = np.array(samples, dtype=np.int32).reshape(-1, 3)
    np.save(folder / f"samples-{part}.npy", table)
    return Part(
        rows=rows,
        samples=len(samples),
        tokens=int(table[:, 0].sum(dtype=np.int64)),
        trained_tokens=int(table[:, 1].sum(dtype=np.int64)),
        truncated=int(table[:, 2].sum()),
        dropped=rows - len(samples) - len(faults),
        faults=faults[:MOST_FAULTS],
    )


def _in_batches(rows: Iterator[Chat | Fault]) -> Iterator[list[Chat | Fault]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


Tokens = tuple[int, np.ndarray, np.ndarray]
"""Line, ids [T] uint32, trained [T] bool."""


def _tokenized(renderer: Renderer, rows: list[Chat | Fault]) -> Iterator[Tokens | Fault]:
    """In the order of the rows."""
    if renderer.has_generation_tags:
        yield from (row if isinstance(row, Fault) else _by_tags(renderer, row) for row in rows)
        return
    rendered = [row if isinstance(row, Fault) else _rendered(renderer, row) for row in rows]
    texts = [text for text, _ in (row for row in rendered if not isinstance(row, Fault))]
    # The template has written every special token that belongs there, a BOS too: none may be added.
    encodings = iter(renderer.tokenizer(texts, add_special_tokens=False, verbose=False).encodings if texts else ())
    for row, source in zip(rendered, rows, strict=True):
        if isinstance(row, Fault):
            yield row
            continue
        encoding, (text, turns) = next(encodings), row
        try:
            trained = trained_by_offsets(
                turns, ids=encoding.ids, offsets=encoding.offsets, text=text, added_ids=renderer.added_ids
            )
        except Unmaskable as error:
            yield Fault(source.line, str(error))
            continue
        yield _checked(source.line, encoding.ids, trained)


def _rendered(renderer: Renderer, chat: Chat) -> tuple[str, list[Turn]] | Fault:
    try:
        text = renderer.text(chat.messages)
        return text, find_turns(renderer, chat.messages, chat.trained, full=text)
    except TemplateRefused as error:
        return Fault(chat.line, _refusal(error))
    except Unmaskable as error:
        return Fault(chat.line, str(error))


def _by_tags(renderer: Renderer, chat: Chat) -> Tokens | Fault:
    try:
        ids, tagged = renderer.assistant_mask(chat.messages)
        roles = [message["role"] for message in chat.messages]
        return _checked(chat.line, ids, trained_by_tags(tagged, trained=chat.trained, roles=roles))
    except TemplateRefused as error:
        return Fault(chat.line, _refusal(error))
    except Unmaskable as error:
        return Fault(chat.line, str(error))


def _refusal(error: TemplateRefused) -> str:
    return f"messages: the chat template refuses them: {error}; change them, or use another chatTemplate"


def _checked(line: int, ids: list[int], trained: np.ndarray) -> Tokens | Fault:
    trained[:1] = False  # nothing stands before the first token to predict it from
    if not trained.any():
        return Fault(line, "messages: no token of this chat would be trained; give an assistant turn some content")
    return line, np.asarray(ids, dtype=np.uint32), trained


def _fitted(
    line: int, ids: np.ndarray, trained: np.ndarray, limits: Limits
) -> tuple[np.ndarray, np.ndarray, bool] | Fault | None:
    """The sample and whether it was cut; None where it is dropped."""
    most = limits.max_length
    if len(ids) <= most:
        return ids, trained, False
    if limits.overlong == "error":
        return Fault(
            line,
            f"messages: {len(ids)} tokens, at most {most} fit; shorten the chat, or set overlong to truncate or drop",
        )
    if limits.overlong == "drop" or not trained[:most].any():
        return None
    return ids[:most], trained[:most], True
