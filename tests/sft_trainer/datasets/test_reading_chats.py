"""What stands in a JSONL file: the forms that are read, and the sentence that each fault gets."""

from pathlib import Path

import pytest

from sft_trainer.datasets.formats import Chat
from sft_trainer.datasets.lines import scan_lines
from sft_trainer.datasets.read import read_rows, scan
from sft_trainer.datasets.rows import Fault, Row
from sft_trainer.datasets.tokenize import _sample
from sft_trainer.datasets.tokens import Sample
from sftjob.failure import JobFailure, Reason

GOOD = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read(path: Path, content: bytes) -> list[Sample | Fault]:
    path.write_bytes(content)
    return [_sample(row, "messages", {}) for span in scan(path, workers=1).shares[0] for row in read_rows(span)]


def test_an_object_or_a_bare_list_blank_lines_and_a_byte_order_mark_are_read(tmp_path) -> None:
    bare = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": null}]'
    assert read(tmp_path / "d", b"\xef\xbb\xbf" + GOOD + b"\n  \r\n" + bare) == [
        Sample(1, Chat(MESSAGES, [False, True])),
        Sample(4, Chat(MESSAGES, [False, True])),
    ]


def test_loss_and_the_fields_that_templates_know_are_kept_and_other_fields_of_the_object_passed_over(tmp_path) -> None:
    line = (
        b'{"id": 7, "messages": [{"role": "assistant", "content": "b", "loss": false}, {"role": "tool", "content": "", '
        b'"name": "n", "tool_call_id": "1"}, {"role": "assistant", "content": "c", "tool_calls": null}]}'
    )
    assert read(tmp_path / "d", line) == [
        Sample(
            1,
            Chat(
                [
                    {"role": "assistant", "content": "b"},
                    {"role": "tool", "content": "", "name": "n", "tool_call_id": "1"},
                    {"role": "assistant", "content": "c"},
                ],
                [False, False, True],
            ),
        )
    ]


ASSISTANT = b'{"role": "assistant", "content": "b"}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"messages": [', "(line): broken JSON, Expecting value at column 15; write one whole JSON value a line"),
        (b"[" * 100_000, "(line): not readable as JSON, "),
        (b'{"messages": "\xff"}', "(line): byte 15 is not UTF-8; save the file as UTF-8"),
        (b'"text"', "(line): is a string; write an object with `messages`"),
        (b"{}", "messages: missing; write an object with `messages`, as this file's format messages has it"),
        (b'{"messages": null}', "messages: is null; write a list of messages"),
        (b'{"messages": {}}', "messages: is an object; write a list of messages"),
        (b'{"messages": []}', "messages: empty; write at least a user and an assistant message"),
        (
            b'{"tools": [1], "messages": [' + ASSISTANT + b"]}",
            "tools[0]: is a number; write an object",
        ),
        (b"[3]", "messages[0]: is a number; write an object with `role` and `content`"),
        (b"[" + ASSISTANT + b', {"content": "a"}]', "messages[1].role: missing; add it"),
        (b'[{"role": "user"}]', "messages[0].content: missing; add it"),
        (b'[{"role": true, "content": "a"}]', "messages[0].role: is true or false; write a string"),
        (
            b'[{"role": "robot", "content": "a"}]',
            "messages[0].role: 'robot' is not known; use one of system, developer, user, assistant, tool",
        ),
        (b'[{"role": "user", "content": null}]', "messages[0].content: is null; write a string"),
        (
            b'[{"role": "user", "content": ["a"]}]',
            "messages[0].content[0]: is no text; write a string, or an object with the type 'text' and `text`",
        ),
        (
            b'[{"role": "user", "content": "a\\ud800"}]',
            "messages[0].content: character 2 is half of a surrogate pair; write the whole character",
        ),
        (
            b'{"tools": [{"function": {"description": "half \\ud83d"}}], "messages": [' + ASSISTANT + b"]}",
            "tools[0].function.description: character 6 is half of a surrogate pair; write the whole character",
        ),
        (
            b'[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"\\ud83d": 1}}}]}]',
            "messages[0].tool_calls[0].function.arguments, the name of a field: character 1 is half of a",
        ),
        (
            b'[{"role": "user", "content": "a", "tool_calls": [1]}]',
            "messages[0].tool_calls: stands in a message of the role 'user'; only assistants have it",
        ),
        (
            b'[{"role": "assistant", "content": "a", "loss": 0}]',
            "messages[0].loss: is a number; write true or false",
        ),
        (
            b'[{"role": "user", "content": "a", "loss": true}]',
            "messages[0].loss: true for the role 'user'; only assistant turns can be trained",
        ),
        (
            b'[{"role": "user", "content": "a"}]',
            "messages: no token of this chat would be trained; add an assistant turn without `loss: false`",
        ),
        (
            b'[{"role": "assistant", "content": "a", "loss": false}]',
            "messages: no token of this chat would be trained; add an assistant turn without `loss: false`",
        ),
    ],
)
def test_a_fault_is_told_with_line_field_and_remedy_and_the_other_lines_are_read(line, problem, tmp_path) -> None:
    rows = read(tmp_path / "d", GOOD + line + b"\n" + GOOD)
    assert rows[0] == Sample(1, Chat(MESSAGES, [False, True]))
    assert rows[2] == Sample(3, Chat(MESSAGES, [False, True]))
    fault = rows[1]
    assert isinstance(fault, Fault)
    assert fault.line == 2
    assert fault.problem.startswith(problem)
    assert "; " in fault.problem


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing", "there is no such file; correct the dataset's path"),
        ("folder", "no file in it ends in .jsonl, .ndjson, .json, .parquet, .arrow; name a file or folder"),
        ("empty", "the file is empty; write one row a line"),
        ("d.csv", "files that end in .csv are not read; write its rows as .jsonl, .ndjson, .json, .parquet, .arrow"),
    ],
)
def test_a_file_that_can_hold_no_chat_is_named(name, problem, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "d.csv").write_text("question,answer\na,b\n")
    with pytest.raises(JobFailure) as failure:
        scan(tmp_path / name, workers=1)
    assert failure.value.reason is Reason.INVALID_DATA
    assert failure.value.message == f"{tmp_path / name}: {problem}"


@pytest.mark.parametrize("ranges", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_ranges_cover_each_line_once_under_its_own_number(ranges, end, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sft_trainer.datasets.lines._CHUNK_BYTES", 100)
    path = tmp_path / "d"
    path.write_bytes(b"\n".join([GOOD.strip() + b" " * (37 * number % 400) for number in range(50)]) + end)
    _, lines, spans = scan_lines(path, ranges=ranges)
    assert lines == 50
    rows = [row for span in spans for row in read_rows(span)]
    assert [row.line for row in rows] == list(range(1, 51))
    assert all(isinstance(row, Row) for row in rows)
    assert len(spans) == min(ranges, 50)
