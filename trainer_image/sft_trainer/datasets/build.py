"""Tokenises one dataset into the parts of a cache, in this process or in several.

In: the dataset's scan, the tokenizer or a function of a user's own, how its rows are read, a folder. Out: the parts, in
the order of the rows. Called by `open_tokens` when the cache does not hold the dataset yet. Of bad rows beyond the
budget one JobFailure tells.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from sft_trainer.datasets.bad_rows import BadRows, bad_rows_of
from sft_trainer.datasets.read import Scan
from sft_trainer.datasets.tokenize import Part, Reading, TokensOf
from sft_trainer.datasets.worker import Report, Task, run_task, tokens_of
from sftjob.failure import JobFailure, Reason


def build_parts(
    path: Path,
    scan: Scan,
    *,
    tokenizer_path: str,
    chat_template: str | None,
    own: TokensOf | None,
    reading: Reading,
    before: BadRows,
    folder: Path,
    on_rows: Callable[[int], None],
) -> list[Part]:
    """One process a share of the scan; with `own`, which is known here alone, there must be one share. `before` are the
    bad rows of datasets before this one.

    Raises JobFailure for too many bad rows, or a tokenizer or template that won't do.
    """
    tasks = [
        Task(
            spans=spans,
            tokenizer_path=tokenizer_path,
            chat_template=chat_template,
            reading=reading,
            folder=folder,
            part=part,
        )
        for part, spans in enumerate(scan.shares)
    ]
    if len(tasks) == 1:
        parts = [run_task(tasks[0], tokens_of=own or tokens_of(tasks[0]), on_rows=on_rows)]
    else:
        assert own is None
        parts = _in_processes(tasks, on_rows=on_rows)
    parts = [part.model_copy(update={"told": [row.within(path) for row in part.told]}) for part in parts]
    told = [row for part in parts for row in part.told]
    bad = before + bad_rows_of(path, sum(part.bad_rows for part in parts), told)
    bad.check(reading.budget, is_all=not any(part.is_given_up for part in parts))
    if not any(part.rows for part in parts):
        raise JobFailure(Reason.INVALID_DATA, f"{path}: no row in it; give it some")
    if missing := set.intersection(*(set(part.missing_columns) for part in parts if part.rows)):
        # Of a field that a row may do without, or each row would have been told.
        column = min(missing)
        name = next(name for name, given in reading.columns.items() if given == column)
        raise JobFailure(
            Reason.INVALID_DATA,
            f"{path}: no row has {column!r}, which `columns` names for {name}; correct or remove it",
        )
    return parts


def _in_processes(tasks: list[Task], *, on_rows: Callable[[int], None]) -> list[Part]:
    done = [0] * len(tasks)
    told = threading.Lock()

    def on_rows_of(part: int, rows: int) -> None:
        with told:
            done[part] = rows
            on_rows(sum(done))

    workers = [_started(task) for task in tasks]
    with ThreadPoolExecutor(len(tasks)) as pool:
        try:
            followed = [
                pool.submit(_follow, worker, task, on_rows_of) for worker, task in zip(workers, tasks, strict=True)
            ]
            wait(followed, return_when=FIRST_EXCEPTION)
            # An error of one is the error of all: the first to fail is asked first, the others are killed below.
            for future in followed:
                if future.done():
                    future.result()
            return [future.result() for future in followed]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def _started(task: Task) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # The processes are the parallelism: threads in each would fight for the same cores.
        "TOKENIZERS_PARALLELISM": "false",
    }
    worker = subprocess.Popen(
        # -P: a user's `tokenize.py` in the current folder must not replace the standard library's.
        [sys.executable, "-P", "-m", "sft_trainer.datasets.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert worker.stdin is not None
    worker.stdin.write(task.to_json().encode() + b"\n")
    worker.stdin.flush()
    return worker


def _follow(worker: subprocess.Popen[bytes], task: Task, on_rows: Callable[[int, int], None]) -> Part:
    assert worker.stdout is not None
    for line in worker.stdout:
        report = Report.from_json(line)
        if report.failure:
            raise JobFailure(*report.failure)
        if report.part:
            return report.part
        on_rows(task.part, report.rows)
    code = worker.wait()
    if code == -9:
        raise JobFailure(
            Reason.LOAD_OUT_OF_MEMORY,
            f"{_begin(task)}: the process that tokenises from here on was killed, most likely for lack of memory; "
            "give more memory (spec.compute.resources.limits.memory), or lower num_workers",
        )
    raise RuntimeError(f"{_begin(task)}: the process that tokenises from here on ended with code {code}")


def _begin(task: Task) -> str:
    span = task.spans[0]
    return f"{span.path}{span.place(span.first)}"
