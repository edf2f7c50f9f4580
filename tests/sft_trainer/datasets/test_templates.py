"""Our named chat templates write what the models' own write."""

import pytest

from sft_trainer.datasets.render import Renderer, load_tokenizer
from sft_trainer.datasets.template import chat_template_named
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.datasets.chats import CHATML_TOKENS, pair, trl_template

SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "7 degrees"}
CHATS = [
    pair("Hi", "Hello"),
    [SYSTEM, *pair("  Hi ", " Hello\n")],
    [*pair("Hi", "Hello"), *pair("Hi", "Hello"), *pair("Hi", "Hello")],
    [*pair("Hi", "<think>\nA greeting.\n</think>\n\nHello"), *pair("Hi", "<think>\nAgain.\n</think>\n\nHello")],
    [*pair("Warm?", "<think>\nAsk.\n</think>\nI ask."), TOOL, TOOL, {"role": "assistant", "content": "Yes"}],
    [*pair("Warm?", "I ask."), TOOL, *pair("<tool_response>\nno\n</tool_response>", "No"), *pair("And now?", "Yes")],
    [SYSTEM, *pair("Hi", "Hello"), SYSTEM, {"role": "user", "content": "Bye"}],
    [SYSTEM, {"role": "user", "content": "<think>"}],
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("model", ["qwen3", "llama3"])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_it_renders_as_trls_copy_of_the_models_own(model, chat, add_generation_prompt, request) -> None:
    tokenizer = request.getfixturevalue(model)
    ours, theirs = (
        tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        for template in (chat_template_named(model), trl_template(f"{model}.jinja"))
    )
    assert ours == theirs


DESCRIBED = {"type": "function", "function": {"name": "heat", "description": "Wärme", "parameters": {"type": "object"}}}
CALLS = [{"type": "function", "function": {"name": "heat", "arguments": {"room": each}}} for each in (4, "ä")]
CALLING = [
    [*pair("Warm?", "")[:1], {"role": "assistant", "content": "", "tool_calls": CALLS}, TOOL, *pair("", "Yes")[1:]],
    [SYSTEM, *pair("Warm?", "")[:1], {"role": "assistant", "content": "I ask.", "tool_calls": CALLS[:1]}],
    [*pair("Warm?", "")[:1], {"role": "assistant", "content": "\nI ask.", "reasoning_content": "\nAsk.\n"}],
    [
        *pair("Warm?", "")[:1],
        {"role": "assistant", "content": "", "reasoning_content": "Ask.", "tool_calls": CALLS},
        TOOL,
        {"role": "assistant", "content": "Yes", "reasoning_content": "So."},
        *pair("Sure?", "Yes."),
    ],
    [SYSTEM, *pair("Hi", "Hello"), SYSTEM, *pair("Hi", "Hello")],
]


@pytest.mark.parametrize("chat", CALLING)
@pytest.mark.parametrize("tools", [None, [DESCRIBED, DESCRIBED]])
def test_qwen3_writes_tools_calls_and_thoughts_as_the_models_own(chat, tools, qwen3) -> None:
    ours, theirs = (
        qwen3.apply_chat_template(chat, chat_template=template, tools=tools, tokenize=False)
        for template in (chat_template_named("qwen3"), trl_template("qwen3.jinja"))
    )
    assert ours == theirs


@pytest.mark.parametrize("enable_thinking", [False, True])
def test_qwen3s_thinking_switch_is_kept(qwen3, enable_thinking) -> None:
    ours, theirs = (
        qwen3.apply_chat_template(
            CHATS[0],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
        for template in (chat_template_named("qwen3"), trl_template("qwen3.jinja"))
    )
    assert ours == theirs


def test_chatml_adds_no_system_prompt_of_its_own(qwen2_5, tokenize) -> None:
    result = tokenize(qwen2_5, pair("Hi", " Hello "), chat_template="chatml")
    assert result.text() == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Hello <|im_end|>\n"
    assert result.trained_pieces() == [" Hello <|im_end|>"]


def test_no_name_keeps_the_tokenizers_own_template(qwen2_5, tokenize) -> None:
    assert tokenize(qwen2_5, pair("Hi", "Hello")).text().startswith("<|im_start|>system\nYou are Qwen, created by")


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(make_tokenizer) -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    template += "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    renderer = Renderer(make_tokenizer(template, tokens=CHATML_TOKENS), chat_template=None)
    assert renderer.text(pair("Hi", "Hello")) == "26 Jul 2024Hi<|im_end|>Hello<|im_end|>"


def test_an_unknown_name_is_refused_with_the_known_ones(qwen3) -> None:
    with pytest.raises(JobFailure) as failure:
        Renderer(qwen3, chat_template="qwen7")
    assert failure.value.reason is Reason.INVALID_CONFIGURATION
    assert failure.value.message == (
        "chatTemplate: 'qwen7' is not known; use one of chatml, llama3, qwen3, "
        "or leave it out to keep the tokenizer's own"
    )


def test_a_tokenizer_without_a_template_needs_a_name(make_tokenizer, tmp_path) -> None:
    make_tokenizer(None, tokens=CHATML_TOKENS).save_pretrained(tmp_path)
    with pytest.raises(JobFailure) as failure:
        Renderer(load_tokenizer(str(tmp_path)), chat_template=None)
    assert failure.value.reason is Reason.INVALID_CONFIGURATION
    assert failure.value.message == (
        f"chatTemplate: missing, and the tokenizer in {tmp_path} has none; set one of chatml, llama3, qwen3"
    )


def test_a_template_of_ours_whose_end_is_no_token_is_refused(make_tokenizer) -> None:
    tokenizer = make_tokenizer(None, tokens=CHATML_TOKENS)
    Renderer(tokenizer, chat_template="chatml")
    with pytest.raises(JobFailure, match=r"llama3 ends a turn with <\|eot_id\|>, which is no token of the") as failure:
        Renderer(tokenizer, chat_template="llama3")
    assert failure.value.reason is Reason.INVALID_CONFIGURATION


def test_a_template_that_is_no_template_is_refused_with_its_line(make_tokenizer) -> None:
    with pytest.raises(
        JobFailure, match=r"the chat template is no template, line 2: .*; correct it, or set"
    ) as failure:
        Renderer(make_tokenizer("{{ bos_token }}\n{% for %}", tokens=CHATML_TOKENS), chat_template=None)
    assert failure.value.reason is Reason.INVALID_CONFIGURATION


def test_a_template_that_leaves_plain_strings_out_is_refused(make_tokenizer) -> None:
    tokenizer = make_tokenizer(trl_template("smolvlm.jinja"), tokens=CHATML_TOKENS)
    with pytest.raises(JobFailure, match="the chat template leaves out content that is a plain string; correct it"):
        Renderer(tokenizer, chat_template=None)


def test_a_template_that_refuses_the_simplest_chat_is_quoted(make_tokenizer) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('No chats here') }}", tokens=CHATML_TOKENS)
    with pytest.raises(JobFailure, match="refuses a plain question and answer: No chats here; correct it"):
        Renderer(tokenizer, chat_template=None)


def test_a_folder_without_a_tokenizer_is_named(tmp_path) -> None:
    with pytest.raises(JobFailure, match=f"{tmp_path}: holds no readable tokenizer") as failure:
        load_tokenizer(str(tmp_path))
    assert failure.value.reason is Reason.MODEL_UNREADABLE
