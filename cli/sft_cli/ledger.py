"""Which samples a run has trained, from what its ranks wrote down: attempts' ledgers in, one account out.

The history of a run is made of attempts: each goes on from a checkpoint, and what earlier ones trained beyond it is
lost. Of the steps that remain every rank must have told, and in an epoch that is over every sample must stand as often
as the data has it. Called by `sft ledger`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from sft_cli.refusal import Refusal
from sftjob import names
from sftjob.ledger import EpochContent, LedgerHead, LedgerLine

_MOST_NAMED = 10

Piece = tuple[int, int]
"""A sample, and the token in it with which the piece begins: 0 but for what packs have cut."""


@dataclass(frozen=True)
class Account:
    epochs: list[str]
    """A sentence an epoch."""
    problems: list[str]
    """What the ledger does not prove, or disproves."""


@dataclass
class _Step:
    attempt: int
    world_size: int
    lines: list[tuple[int, LedgerLine]] = field(default_factory=list)
    """Of each rank, once where all is well."""

    @property
    def silent_ranks(self) -> list[int]:
        return sorted(set(range(self.world_size)) - {rank for rank, _ in self.lines})


def read_ledger(storage: Path) -> Account:
    """Raises Refusal where no rank has written a ledger, or a line of one can't be read."""
    history: dict[int, _Step] = {}
    head: LedgerHead | None = None
    content: EpochContent | None = None
    for attempt in _numbers(storage / names.ATTEMPTS):
        for rank, path in _files(storage, attempt):
            for record in _read(path):
                if isinstance(record, LedgerHead):
                    head, content = record, record.content or content
                    history = {
                        step: told
                        for step, told in history.items()
                        if step <= record.resumed_from or told.attempt == attempt
                    }
                else:
                    history.setdefault(record.step, _Step(attempt, head.world_size)).lines.append((rank, record))
    if head is None or content is None:
        raise Refusal(f"{storage}: no ledger in here; name the folder of a run that has begun to train")
    saved = max(filter(None, map(names.checkpoint_step, _entries(storage))), default=0)
    newest = max(history, default=0)
    # The step that is being trained, or that was when all was killed: no checkpoint has it, and it will be done again.
    if newest > saved and history[newest].silent_ranks:
        del history[newest]
    last = max([saved, *history])
    return _account(history, last=last, head=head, content=content)


def _account(history: dict[int, _Step], *, last: int, head: LedgerHead, content: EpochContent) -> Account:
    problems = []
    for step in range(1, last + 1):
        told = history.get(step)
        if told is None:
            problems.append(f"step {step}: no rank has told what it trained")
        else:
            problems += [
                f"step {step}: rank {rank} of {told.world_size} has not told what it trained, in attempt {told.attempt}"
                for rank in told.silent_ranks
            ]
    expected: Counter[Piece] = Counter(content.cut)
    for first, end, times in content.samples:
        expected.update({(sample, 0): times for sample in range(first, end + 1)})
    trained: dict[int, Counter[Piece]] = {}
    for told in history.values():
        for _, line in told.lines:
            for pack in line.packs:
                begins = pack.begins or [0] * len(pack.samples)
                trained.setdefault(pack.epoch, Counter()).update(zip(pack.samples, begins, strict=True))
    epochs = []
    newest_epoch = max(trained, default=0)
    for epoch in range(1, newest_epoch + 1):
        found = trained.get(epoch, Counter())
        is_over = epoch < newest_epoch or (head.total_epoch is not None and last == head.total_steps)
        wrong = list(_wrong(found, expected, is_over=is_over))
        problems += [f"epoch {epoch}: {what}" for what in wrong[:_MOST_NAMED]]
        if len(wrong) > _MOST_NAMED:
            problems.append(f"epoch {epoch}: {len(wrong) - _MOST_NAMED} more like these")
        epochs.append(_sentence(epoch, found, expected, is_over=is_over, is_right=not wrong))
    return Account(epochs, problems)


def _wrong(found: Counter[Piece], expected: Counter[Piece], *, is_over: bool) -> Iterator[str]:
    for piece in sorted(found.keys() | expected.keys()):
        times, right = found[piece], expected[piece]
        sample, begin = piece
        what = f"sample {sample} from token {begin} on" if begin else f"sample {sample}"
        if not right:
            yield f"{what} was trained, and the data does not have it"
        elif times > right:
            yield f"{what} was trained {times} times instead of {'once' if right == 1 else f'{right} times'}"
        elif is_over and not times:
            yield f"{what} was not trained"
        elif is_over and times < right:
            yield f"{what} was trained {'once' if times == 1 else f'{times} times'} instead of {right} times"


def _sentence(epoch: int, found: Counter[Piece], expected: Counter[Piece], *, is_over: bool, is_right: bool) -> str:
    def samples(pieces: Counter[Piece]) -> int:
        return sum(times for (_, begin), times in pieces.items() if not begin)

    sentence = f"epoch {epoch}: {samples(found)} of {samples(expected)} samples"
    if is_right:
        sentence += ", each once" if max(expected.values()) == 1 else ", each as often as it was drawn"
    return sentence if is_over else f"{sentence}; not over yet"


def _files(storage: Path, attempt: int) -> list[tuple[int, Path]]:
    folder = names.attempt_folder(storage, attempt)
    ranks = (names.ledger_rank(name) for name in _entries(folder))
    return [(rank, names.ledger(storage, attempt, rank)) for rank in sorted(rank for rank in ranks if rank is not None)]


def _read(path: Path) -> Iterator[LedgerHead | LedgerLine]:
    """The head first. What was being written when its rank was killed is left out."""
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            yield (LedgerHead if number == 1 else LedgerLine).from_json(line)
        except ValidationError:
            raise Refusal(f"{path}:{number}: not a line of a ledger; restore the file") from None


def _numbers(folder: Path) -> list[int]:
    return sorted(int(name) for name in _entries(folder) if name.isdecimal())


def _entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
