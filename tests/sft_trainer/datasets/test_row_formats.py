"""Each format of rows: what it becomes, which tokens are trained, and what is refused."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sft_trainer.datasets import known_files
from sft_trainer.datasets.config import DataloaderConfig, PretrainTokenizeFunctionConfig
from sft_trainer.datasets.formats import Chat, Passage, known_format, sample_of
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.datasets.values import Refused
from sftjob.failure import JobFailure
from tests.sft_trainer.datasets.chats import CHATML_TOKENS, LLAMA3_TOKENS, pair, trl_template, write_chats

TOOL = {"type": "function", "function": {"name": "heat", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "heat", "arguments": '{"room": 4}'}}
ROWS = [
    (pair("a", "b"), "messages", Chat(pair("a", "b"), [False, True])),
    ({"text": "t", "messages": pair("a", "b")}, "messages", Chat(pair("a", "b"), [False, True])),
    (
        {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "a", "weight": 0},
                {"from": "gpt", "value": "no", "weight": 0},
                {"from": "function_call", "value": '{"name": "heat", "arguments": {"room": 4}}'},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "b", "weight": 1},
            ],
            "tools": json.dumps([TOOL]),
        },
        "sharegpt",
        Chat(
            [
                {"role": "system", "content": "s"},
                *pair("a", "no"),
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "heat", "arguments": {"room": 4}}}],
                },
                {"role": "tool", "content": "7"},
                {"role": "assistant", "content": "b"},
            ],
            [False, False, False, True, False, True],
            [TOOL],
        ),
    ),
    (
        {"system": "s", "messages": pair("a", "b"), "tools": [TOOL], "source": "mails"},
        "messages",
        Chat([{"role": "system", "content": "s"}, *pair("a", "b")], [False, False, True], [TOOL]),
    ),
    (
        {
            "system": "s",
            "messages": [{"role": "system", "content": "s"}, *pair("a", "b")],
            "tools": "",
            "functions": [],
        },
        "messages",
        Chat([{"role": "system", "content": "s"}, *pair("a", "b")], [False, False, True]),
    ),
    ({"messages": pair("a", "b"), "tools": "null"}, "messages", Chat(pair("a", "b"), [False, True])),
    (
        {"messages": [pair("a", "")[0], {"role": "assistant", "content": "b", "tool_calls": "null"}]},
        "messages",
        Chat(pair("a", "b"), [False, True]),
    ),
    ({"prompt": "a", "completion": "b", "system": "", "tools": None}, "prompt-completion", Passage("a", "b")),
    (
        {"system": "s", "tools": [TOOL], "prompt": pair("a", "")[:1], "completion": pair("", "b")[1:]},
        "prompt-completion",
        Chat([{"role": "system", "content": "s"}, *pair("a", "b")], [False, False, True], [TOOL]),
    ),
    (
        {"system": "s", "instruction": "a", "output": "b", "tools": json.dumps([TOOL])},
        "alpaca",
        Chat([{"role": "system", "content": "s"}, *pair("a", "b")], [False, False, True], [TOOL]),
    ),
    (
        {"prompt": [*pair("a", "b"), pair("c", "")[0]], "completion": pair("", "d")[1:]},
        "prompt-completion",
        Chat([*pair("a", "b"), *pair("c", "d")], [False, False, False, True]),
    ),
    (
        {"instruction": "a", "input": "c", "output": "b", "text": "t"},
        "alpaca",
        Chat(pair("a\n\nc", "b"), [False, True]),
    ),
    ({"instruction": "a", "input": "", "output": "b"}, "alpaca", Chat(pair("a", "b"), [False, True])),
    ({"text": "t"}, "text", Passage("", "t")),
]


@pytest.mark.parametrize(("row", "row_format", "sample"), ROWS)
def test_a_row_is_known_by_its_fields_and_read(row, row_format, sample) -> None:
    assert known_format(row) == row_format
    assert sample_of(row, row_format) == sample


@pytest.mark.parametrize(
    ("row", "row_format", "problem"),
    [
        ({"text": "t"}, "alpaca", "instruction: missing; write an object with `instruction` and `output`, as this"),
        ({"text": 3}, "text", "text: is a number; write a string"),
        ({"prompt": "a", "completion": []}, "prompt-completion", "completion: is a list where prompt is a string; "),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "alpaca", "history: earlier turns can't be "),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "sharegpt", "conversations[0].from: 'bot' is not known; "),
        ({"conversations": [{"role": "user"}]}, "sharegpt", "conversations[0].from: missing; "),
        ({"conversations": [{"from": "gpt", "value": "a", "weight": 2}]}, "sharegpt", "conversations[0].weight: 2 is "),
        (
            {"messages": pair("a", "b"), "functions": [TOOL["function"]]},
            "messages",
            "functions: OpenAI's older form can't be used; write them as `tools`, each under `function`",
        ),
        (
            {"prompt": pair("a", "")[:1], "completion": pair("", "b")[1:], "functions": "[{}]"},
            "prompt-completion",
            "functions: OpenAI's older form can't be used; ",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "a"}], "chat_template_kwargs": {"enable_thinking": False}},
            "sharegpt",
            "chat_template_kwargs: can't be used; remove it, or use a model or chatTemplate that needs none",
        ),
        (
            {"system": "s", "messages": [{"role": "developer", "content": "t"}, *pair("a", "b")]},
            "messages",
            "system: given, but messages[0] has the role developer and other words; remove one",
        ),
        (
            {"system": "s", "conversations": [{"from": "system", "value": "t"}, {"from": "gpt", "value": "a"}]},
            "sharegpt",
            "system: given, but conversations[0] has the role system and other words; remove one",
        ),
        ({"system": ["s"], "messages": pair("a", "b")}, "messages", "system: is a list; write a string"),
        ({"system": "s", "conversations": []}, "sharegpt", "conversations: empty; write at least"),
        (
            {"system": "s", "prompt": "a", "completion": "b"},
            "prompt-completion",
            "system: given, but prompt and completion are strings, which no chat template writes; write two lists of",
        ),
        ({"tools": [TOOL], "prompt": "a", "completion": "b"}, "prompt-completion", "tools: given, but prompt and "),
        ({"functions": [{}], "prompt": "a", "completion": "b"}, "prompt-completion", "functions: given, but prompt "),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages",
            "messages[0].tool_calls[0].function.arguments: is a string that holds no JSON, ",
        ),
        (
            [{"role": "assistant", "content": "a", "thinking": "b", "reasoning_content": "c"}],
            "messages",
            "messages[0].thinking: given together with reasoning_content; remove one",
        ),
    ],
)
def test_a_row_that_is_not_of_its_format_is_refused_with_its_field(row, row_format, problem) -> None:
    with pytest.raises(Refused) as refused:
        sample_of(row, row_format)
    assert str(refused.value).startswith(problem)
    assert "; " in str(refused.value)


@pytest.fixture
def base(make_tokenizer):
    """Without a chat template, which passages do not need."""
    return make_tokenizer(None, tokens=LLAMA3_TOKENS, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def test_a_text_is_trained_whole_between_one_begin_and_one_end(base, tokenize) -> None:
    result = tokenize(base, {"text": "Hello there"}, {"text": "<|begin_of_text|>Hi<|eot_id|>"}, row_format="text")
    assert [result.text(0), result.text(1)] == [
        "<|begin_of_text|>Hello there<|eot_id|>",
        "<|begin_of_text|>Hi<|eot_id|>",
    ]
    assert result.trained_pieces(0) == ["Hello there<|eot_id|>"]
    assert result.trained_pieces(1) == ["Hi<|eot_id|>"]


def test_a_completion_is_trained_with_its_end_and_the_prompt_is_not(base, tokenize) -> None:
    result = tokenize(base, {"prompt": "Two plus two?", "completion": " Four."}, row_format="prompt-completion")
    assert result.text() == "<|begin_of_text|>Two plus two? Four.<|eot_id|>"
    assert result.trained_pieces() == [" Four.<|eot_id|>"]


def test_a_tokenizer_without_an_end_token_can_not_end_a_text(make_tokenizer, tokenize) -> None:
    with pytest.raises(JobFailure, match="has no eos_token to end a text with; name one"):
        tokenize(make_tokenizer(None, tokens=LLAMA3_TOKENS), {"text": "a"}, row_format="text")


CALLING = [
    {"role": "user", "content": "Warm?"},
    {"role": "assistant", "content": None, "reasoning_content": "Ask.", "tool_calls": [CALL]},
    {"role": "tool", "content": "7"},
    {"role": "assistant", "thinking": "Cold.", "content": "No."},
]
WRITTEN = '<tool_call>\n{"name": "heat", "arguments": {"room": 4}}\n</tool_call><|im_end|>'


@pytest.fixture
def calling_qwen3(make_tokenizer):
    tokens = [*CHATML_TOKENS, "<tool_call>", "</tool_call>"]
    return make_tokenizer(trl_template("qwen3.jinja"), tokens=tokens, eos_token="<|im_end|>")


def test_tools_calls_and_thoughts_go_through_the_models_own_template(calling_qwen3, tokenize) -> None:
    result = tokenize(calling_qwen3, {"messages": CALLING, "tools": [TOOL]})
    named = [
        CALLING[0],
        CALLING[1] | {"content": ""},
        CALLING[2],
        {"role": "assistant", "reasoning_content": "Cold.", "content": "No."},
    ]
    assert result.text() == calling_qwen3.apply_chat_template(named, tools=[TOOL], tokenize=False)
    assert result.trained_pieces() == [
        "<think>\nAsk.\n</think>\n\n" + WRITTEN,
        "<think>\nCold.\n</think>\n\nNo.<|im_end|>",
    ]


def test_calls_are_trained_to_the_turns_end_where_their_thoughts_are_dropped_later(calling_qwen3, tokenize) -> None:
    result = tokenize(calling_qwen3, {"messages": [*CALLING, *pair("Sure?", "Yes.")], "tools": [TOOL]})
    assert result.trained_pieces() == [WRITTEN, "No.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"]


REMEDY = "the chat template does not write them; use a model or chatTemplate that knows tools"


def test_what_a_template_would_leave_out_is_refused(qwen2_5, tokenize) -> None:
    result = tokenize(qwen2_5, CALLING, {"messages": pair("a", "b"), "tools": [TOOL]}, chat_template="chatml")
    assert result.faults == [
        f":1: messages[1].tool_calls: {REMEDY}",
        f":2: tools: {REMEDY}",
    ]
    thoughtful = [pair("a", "b")[0], {"role": "assistant", "content": "b", "thinking": "c"}]
    assert tokenize(qwen2_5, thoughtful).faults == [
        ":1: messages[1].reasoning_content: the chat template does not write it; put it into `content`, or remove it"
    ]


@pytest.mark.parametrize("template", ["chatml", "llama3"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": pair("a", "b"), "tools": [TOOL]}, f"tools: {REMEDY}"),
        ({"messages": CALLING[:2]}, f"messages[1].tool_calls: {REMEDY}"),
        ({"messages": CALLING[::3]}, "messages[1].reasoning_content: the chat template does not write it; put it into"),
    ],
)
def test_our_templates_without_tools_and_thoughts_refuse_rows_that_have_them(
    template, row, problem, llama3, qwen3, tokenize
) -> None:
    [fault] = tokenize(llama3 if template == "llama3" else qwen3, row, chat_template=template).faults
    assert fault.startswith(f":1: {problem}")


def test_our_qwen3_template_trains_calls_and_thoughts(calling_qwen3, tokenize) -> None:
    row = {"messages": CALLING, "tools": [TOOL]}
    result, own = tokenize(calling_qwen3, row, chat_template="qwen3"), tokenize(calling_qwen3, row)
    assert result.text() == own.text()
    assert result.trained_pieces() == [
        "<think>\nAsk.\n</think>\n\n" + WRITTEN,
        "<think>\nCold.\n</think>\n\nNo.<|im_end|>",
    ]


SHAREGPT = [{"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]


@pytest.mark.parametrize(
    ("row", "row_format", "problem"),
    [
        ({"system": "s", "conversations": SHAREGPT}, "sharegpt", f"conversations[1].tool_calls: {REMEDY}"),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "a", "loss": True}]},
            "sharegpt",
            "conversations[0].loss: true for the role 'user'; only",
        ),
        (
            {"conversations": [{"from": "function_call", "value": '[{"name": 3, "arguments": {}}]'}]},
            "sharegpt",
            "conversations[0].value[0].name: is a number; write a string",
        ),
        (
            {"conversations": [{"from": "gpt", "value": ""}]},
            "sharegpt",
            "conversations: the chat template refuses them: ",
        ),
        (
            {"prompt": pair("a", "b")[:1], "completion": [{"role": "assistant", "content": "b", "thinking": "c"}]},
            "prompt-completion",
            "completion[0].reasoning_content: the chat template does not write it",
        ),
        (
            {"system": "s", "messages": [*pair("a", "b"), {"role": "assistant", "content": "b", "thinking": "c"}]},
            "messages",
            "messages[2].reasoning_content: the chat template does not write it",
        ),
        ({"instruction": "a", "output": "b" * 99}, "alpaca", "output: 119 tokens, at most 40 fit; shorten it, or set"),
        ({"text": "b" * 99}, "text", "text: 101 tokens, at most 40 fit; shorten it, or set"),
    ],
)
def test_a_fault_names_the_rows_own_fields(row, row_format, problem, make_tokenizer, tokenize) -> None:
    template = "{% if messages[0].role == 'assistant' %}{{ raise_exception('No question') }}{% endif %}"
    template += "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tokenizer = make_tokenizer(template, tokens=CHATML_TOKENS, vocab_size=259, bos_token=CHATML_TOKENS[2])
    tokenizer.eos_token = "<|im_end|>"
    [fault] = tokenize(tokenizer, row, row_format=row_format, max_length=40, overlong="error").faults
    assert fault.startswith(f":1: {problem}")


def test_a_developer_speaks_as_the_system_where_the_template_knows_no_developer(qwen3, tokenize) -> None:
    result = tokenize(qwen3, [{"role": "developer", "content": "Be brief."}, *pair("a", "b")])
    assert result.text().startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


CALL_AND_MORE = [
    {"role": "user", "content": "Is it warm?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "content": "It is.", "name": "heat", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.mark.parametrize("template", ["llama3_1", "llama3_2", "muse_glimmer"])
def test_what_is_said_beside_a_call_is_never_left_out_without_a_word(template, make_tokenizer, tokenize) -> None:
    tokens = [*LLAMA3_TOKENS, "<|eom_id|>", "<|eom|>", "<|eot|>"]
    tokenizer = make_tokenizer(trl_template(f"{template}.jinja"), tokens=tokens)
    alone = tokenize(tokenizer, [CALL_AND_MORE[0], CALL_AND_MORE[1] | {"content": ""}, *CALL_AND_MORE[2:]])
    assert not any("content" in fault for fault in alone.faults)
    [fault] = tokenize(tokenizer, CALL_AND_MORE).faults
    assert fault.startswith(":1: messages[1].content: the chat template leaves out what is said beside tool_calls;")


def test_a_template_that_writes_both_keeps_what_is_said_beside_a_call(qwen3, tokenize) -> None:
    assert "Let me see.\n<tool_call>" in tokenize(qwen3, CALL_AND_MORE).text()


def test_calls_that_a_template_does_not_let_be_told_apart_are_refused_as_such(make_tokenizer, tokenize) -> None:
    tokens = ["<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|constrain|>"]
    tokenizer = make_tokenizer(trl_template("gptoss.jinja"), tokens=tokens)
    thinking = CALL_AND_MORE[1] | {"content": "", "reasoning_content": "Ask."}
    [fault] = tokenize(tokenizer, [CALL_AND_MORE[0], thinking, *CALL_AND_MORE[2:]]).faults
    assert fault.startswith(":1: messages[1]: where its calls end can't be told from the chat template;")


def test_a_system_message_in_the_middle_is_never_left_out_without_a_word(make_tokenizer, qwen3, tokenize) -> None:
    chat = [*pair("a", "b"), {"role": "system", "content": "Be brief."}, *pair("c", "d")]
    tokenizer = make_tokenizer(trl_template("qwen3_vl.jinja"), tokens=CHATML_TOKENS)
    [fault] = tokenize(tokenizer, chat).faults
    assert fault.startswith(":1: messages[2]: the chat template leaves out a system message that is not the first;")
    assert "<|im_start|>system\nBe brief.<|im_end|>" in tokenize(qwen3, chat).text()


DEEPSEEK_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
DEEPSEEK_TOKENS += [f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
DEEPSEEK_TOKENS += [f"<｜tool▁{name}｜>" for name in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end")]


def test_a_template_that_wants_a_calls_arguments_as_openai_has_them_gets_them_so(make_tokenizer, tokenize) -> None:
    template, (bos, eos) = trl_template("deepseekv3.jinja"), DEEPSEEK_TOKENS[:2]
    tokenizer = make_tokenizer(template, tokens=DEEPSEEK_TOKENS, bos_token=bos, eos_token=eos)
    text = tokenize(tokenizer, [*pair("Warm?", "")[:1], {"role": "assistant", "tool_calls": [CALL]}]).text()
    assert '```json\n{"room": 4}\n```' in text


@pytest.mark.parametrize("template", ["gptoss", "gptoss_training"])
def test_a_value_that_a_template_stumbles_over_is_its_rows_fault(template, make_tokenizer, tokenize) -> None:
    tokens = ["<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|constrain|>"]
    tokenizer = make_tokenizer(trl_template(f"{template}.jinja"), tokens=tokens)
    nameless = {"type": "function", "function": TOOL["function"] | {"description": None}}
    [fault] = tokenize(tokenizer, {"tools": [nameless], "messages": pair("a", "b")}).faults
    assert fault.startswith(":1: messages: the chat template refuses them: TypeError: ")


_FIELDS = (
    "role", "content", "loss", "weight", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text",
    "reasoning_content", "thinking", "tool_call_id", "system", "tools", "input", "functions",
)  # fmt: skip
LEAVES = st.sampled_from(
    [None, True, 0, 1.5, "", "a", "user", "assistant", "tool", "human", "gpt", "function_call", "[]", "{}", "\ud800"]
) | st.sampled_from(['{"name": "f", "arguments": {}}', float("nan")])
VALUES = st.recursive(
    LEAVES,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), values, max_size=4),
    max_leaves=12,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "function_call", []]), "value": st.just("a") | VALUES},
        optional={"weight": VALUES, "loss": VALUES},
    )
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", 1]), "content": st.just("a") | VALUES},
        optional={"loss": VALUES, "tool_calls": VALUES, "thinking": VALUES},
    ),
    max_size=3,
)


FORMATS = {
    "messages": ["messages"],
    "sharegpt": ["conversations"],
    "prompt-completion": ["prompt", "completion"],
    "alpaca": ["instruction", "output"],
    "text": ["text"],
}


def test_columns_of_other_names_are_read_as_the_format_has_them(tmp_path, make_tokenizer, monkeypatch) -> None:
    """All of one file, whose rows have formats of their own besides, and which is known from the second time on."""
    monkeypatch.setattr(known_files, "_QUIET_SECONDS", -60)
    chatml = make_tokenizer(trl_template("qwen2_5.jinja"), tokens=CHATML_TOKENS, eos_token="<|im_end|>")
    rows = [{"question": f"q{n}", "answer": f"a{n}", "text": f"t{n}", "output": "not this"} for n in range(3)]
    path = write_chats(tmp_path / "rows.jsonl", rows)
    for number, (columns, row_format, named) in enumerate(
        [
            ({}, "text", [{"text": row["text"]} for row in rows]),
            ({"instruction": "question", "output": "answer"}, "alpaca", _named(rows, "question", "answer")),
            ({"instruction": "answer", "output": "question"}, "alpaca", _named(rows, "answer", "question")),
            ({"instruction": "text", "output": "text"}, "alpaca", _named(rows, "text", "text")),
            ({"text": "answer"}, "text", [{"text": row["answer"]} for row in rows]),
            ({}, "text", [{"text": row["text"]} for row in rows]),
        ]
    ):
        found = prepared(path, chatml, tmp_path, columns=columns)
        expected = prepared(write_chats(tmp_path / f"named-{number}.jsonl", named), chatml, tmp_path)
        assert found.receipt.datasets[0].format == row_format
        for index in range(3):
            for ours, theirs in zip(found.sample(index), expected.sample(index), strict=True):
                assert np.array_equal(ours, theirs), columns
    with pytest.raises(JobFailure, match="of no known format; write messages "):
        prepared(path, chatml, tmp_path, columns={"system": "question"})


def _named(rows: list[dict], instruction: str, output: str) -> list[dict]:
    return [{"instruction": row[instruction], "output": row[output]} for row in rows]


QUESTIONS = {"instruction": "question", "output": "answer"}


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"question": "q", "answer": 7}, {}, ":2: answer: is a number; write a string"),
        ({"question": "q", "answer": "a" * 99}, {}, ":2: answer: 165 tokens, at most 99 fit; shorten it, "),
        (
            {"question": "q", "instruction": "i"},
            {},
            ":2: (line): has the fields 'question', 'instruction', but no 'answer', which `columns` names for output; ",
        ),
        ([{"role": "user", "content": "q"}], {}, ":2: (line): is a list; write an object with `question` and `answer`"),
        ({"question": "q", "answer": "a", "details": "d"}, {"input": "details"}, None),
        ({"question": "q", "answer": "a", "details": 7}, {"input": "details"}, ":2: details: is a number; write "),
        ({"question": "q", "answer": "a"}, {"input": "detials"}, ": no row has 'detials', which `columns` names for "),
    ],
)
def test_of_a_renamed_field_the_row_s_own_name_is_told(row, columns, said, tmp_path, make_tokenizer) -> None:
    chatml = make_tokenizer(trl_template("qwen2_5.jinja"), tokens=CHATML_TOKENS)
    chatml.save_pretrained(tmp_path / "tokenizer")
    path = write_chats(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a"}, row])
    entry = {
        "dataset": {"name": "d", "anno_path": path, "columns": QUESTIONS | columns},
        "tokenize_fn": {"max_length": 99},
    }
    config = DataloaderConfig(dataset_config_list=[entry], overlong="error")
    with pytest.raises(JobFailure) if said else contextlib.nullcontext() as caught:
        prepare_data(config, tokenizer_path=str(tmp_path / "tokenizer"), cache_dir=tmp_path / "cache", seed=1)
    if said:
        assert caught.value.message.startswith(f"{path}{said}")


def test_of_a_renamed_text_the_row_s_own_name_is_told(tmp_path, make_tokenizer) -> None:
    base = make_tokenizer(trl_template("qwen2_5.jinja"), tokens=CHATML_TOKENS, eos_token="<|im_end|>")
    path = write_chats(tmp_path / "rows.jsonl", [{"body": "b"}, {"body": ""}])
    with pytest.raises(JobFailure, match=r":2: body: no token of it would be trained"):
        prepared(path, base, tmp_path, columns={"text": "body"})


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"question": "q", "x": 1}, {"instruction": "question"}, "question and output (alpaca), or name"),
        ({"x": 1, "s": "s"}, {"system": "s"}, "messages (messages); or conversations (sharegpt); or prompt and "),
    ],
)
def test_a_row_of_no_known_format_is_told_in_its_own_words(row, columns, said) -> None:
    with pytest.raises(Refused) as caught:
        known_format(row, columns)
    fields = ", ".join(map(repr, row))
    assert str(caught.value).startswith(f"(line): has the fields {fields}, of no known format; write {said}")
    with pytest.raises(
        Refused, match=r"^\(line\): is a list; write an object with `.*`, or name no `columns` for lists$"
    ):
        known_format([row], columns)


@pytest.mark.parametrize(
    ("dataset", "tokenize_fn", "said"),
    [
        ({"format": "text", "columns": QUESTIONS}, {}, "not all are fields of one format that text allows"),
        ({"columns": {"messages": "a", "text": "b"}}, {}, "not all are fields of one format that auto allows"),
        ({"columns": QUESTIONS}, PretrainTokenizeFunctionConfig(), "names more than `text`"),
    ],
)
def test_columns_that_nothing_would_read_are_refused(dataset, tokenize_fn, said, tmp_path) -> None:
    entry = {"dataset": {"name": "d", "anno_path": tmp_path / "d.jsonl"} | dataset, "tokenize_fn": tokenize_fn}
    with pytest.raises(ValidationError, match=said):
        DataloaderConfig(dataset_config_list=[entry])


@settings(max_examples=1000)
@given(row_format=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_whatever_a_row_holds_it_is_a_sample_or_is_refused(row_format, data) -> None:
    row = {name: data.draw(TURNS | VALUES) for name in FORMATS[row_format]}
    row |= data.draw(st.dictionaries(st.sampled_from(_FIELDS), VALUES, max_size=2))
    with contextlib.suppress(Refused):
        sample_of(row, row_format)


def prepared(path, base, folder, **options):
    base.save_pretrained(folder / "tokenizer")
    config = DataloaderConfig(dataset_config_list=[{"dataset": {"name": "d", "anno_path": path, **options}}])
    return prepare_data(config, tokenizer_path=str(folder / "tokenizer"), cache_dir=folder / "cache", seed=1)


def test_auto_takes_the_first_rows_format_and_another_rows_is_a_fault(base, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", [{"text": "a"}, {"text": "b"}])
    data = prepared(path, base, tmp_path)
    assert data.receipt.datasets[0].format == "text"
    assert prepared(path, base, tmp_path, format="text").digest == data.digest
    write_chats(path, [{"text": "a"}, pair("a", "b")])
    with pytest.raises(JobFailure) as failure:
        prepared(path, base, tmp_path)
    assert failure.value.message == f"{path}:2: (line): is a list; write an object with `text`"


def test_a_first_row_of_no_known_format_is_refused_with_the_known_ones(base, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", [{"question": "a"}])
    with pytest.raises(JobFailure) as failure:
        prepared(path, base, tmp_path)
    assert failure.value.message == (
        f"{path}:1: (line): has the fields 'question', of no known format; write messages (messages); or conversations "
        "(sharegpt); or prompt and completion (prompt-completion); or instruction and output (alpaca); or text (text), "
        "or name the rows' `columns`"
    )


def test_a_named_format_wins_over_the_first_row(base, tmp_path) -> None:
    path = write_chats(tmp_path / "d.jsonl", [{"text": "a", "messages": pair("a", "b")}])
    assert prepared(path, base, tmp_path, format="text").receipt.tokens == 3
