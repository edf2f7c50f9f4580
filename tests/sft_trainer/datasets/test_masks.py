"""Which tokens are trained, on real templates, against what a person would mark; and against TRL's marked templates."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sftjob.failure import JobFailure
from tests.sft_trainer.datasets.chats import CHATML_TOKENS, LLAMA3_TOKENS, pair, trl_template

TWO_TURNS = [*pair("What is two plus two?", "Four."), *pair("And three?", "Six, say I.")]
SYSTEM = {"role": "system", "content": "Be brief."}
IDS = [1, 9690, 198, 6077, 5453, 30, 2, 198, 1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198, 19556, 665, 2, 198]


def test_smollm2_trains_each_answer_with_its_end_of_turn_and_no_header(smollm2: Path, tokenize) -> None:
    result = tokenize(AutoTokenizer.from_pretrained(smollm2), [SYSTEM, *TWO_TURNS])
    assert result.text() == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is two plus two?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
        "<|im_start|>user\nAnd three?<|im_end|>\n<|im_start|>assistant\nSix, say I.<|im_end|>\n"
    )
    assert result.trained_pieces() == ["Four.<|im_end|>", "Six, say I.<|im_end|>"]


def test_smollm2s_token_ids_and_mask_are_these(smollm2: Path, tokenize) -> None:
    result = tokenize(AutoTokenizer.from_pretrained(smollm2), [SYSTEM, *pair("Hi", "Hello there")])
    # <|im_start|> system \n Be brief . <|im_end|> \n <|im_start|> user \n Hi <|im_end|> \n
    # <|im_start|> ass istant \n Hello there <|im_end|> \n
    assert result.ids == [IDS]
    assert result.trained == [[False] * (len(IDS) - 4) + [True, True, True, False]]


def test_llama3_begins_with_one_bos_and_trains_the_end_of_turn_that_is_also_its_pad(llama3, tokenize) -> None:
    result = tokenize(llama3, [SYSTEM, *TWO_TURNS])
    assert result.text().count("<|begin_of_text|>") == 1
    assert result.ids[0][0] == llama3.bos_token_id
    assert result.trained_pieces() == ["Four.<|eot_id|>", "Six, say I.<|eot_id|>"]


def test_qwen3_trains_the_think_block_of_the_last_answer_and_finds_answers_that_lost_theirs(qwen3, tokenize) -> None:
    thoughtful = [
        *pair("What is two plus two?", "<think>\nEasy.\n</think>\n\nFour."),
        *pair("And three?", "<think>\nHarder.\n</think>\n\nSix."),
    ]
    beside = [*pair("What is two plus two?", "Four."), *pair("And three?", "Six.")]
    beside[1]["reasoning_content"], beside[3]["reasoning_content"] = "Easy.", "Harder."
    for chat in (thoughtful, beside):
        result = tokenize(qwen3, chat)
        assert result.trained_pieces() == ["Four.<|im_end|>", "<think>\nHarder.\n</think>\n\nSix.<|im_end|>"]
        assert result.thoughtless == 1
    thoughtful[1]["loss"] = False
    assert tokenize(qwen3, thoughtful).thoughtless == 0
    assert tokenize(qwen3, TWO_TURNS).trained_pieces() == [
        "Four.<|im_end|>",
        "<think>\n\n</think>\n\nSix, say I.<|im_end|>",
    ]


def test_qwen3_answers_around_a_tools_result_are_both_trained(qwen3, tokenize) -> None:
    chat = [*pair("How warm is it?", "I ask."), {"role": "tool", "content": "7"}]
    chat.append({"role": "assistant", "content": "Seven."})
    assert tokenize(qwen3, chat).trained_pieces() == ["I ask.<|im_end|>", "<think>\n\n</think>\n\nSeven.<|im_end|>"]


def test_a_think_block_opened_by_the_generation_prompt_is_not_trained(make_tokenizer, tokenize) -> None:
    opener = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + opener
    )
    tokenizer = make_tokenizer(template, tokens=CHATML_TOKENS)
    chat = [*pair("One?", "<b> one"), *pair("Two?", "<think>\nHm.\n</think>\nTwo.")]
    assert tokenize(tokenizer, chat).trained_pieces() == ["<b> one<|im_end|>", "Hm.\n</think>\nTwo.<|im_end|>"]


def test_a_chat_that_begins_with_the_assistant_is_trained_from_its_first_content(llama3, tokenize) -> None:
    chat = [{"role": "assistant", "content": "Hello!"}, *pair("Hi", "How are you?")]
    assert tokenize(llama3, chat).trained_pieces() == ["Hello!<|eot_id|>", "How are you?<|eot_id|>"]


def test_loss_false_leaves_an_answer_out(qwen3, llama3, tokenize) -> None:
    chat = [*pair("One?", "One."), *pair("Two?", "Two."), *pair("Three?", "Three.")]
    chat[1]["loss"] = chat[5]["loss"] = False
    assert tokenize(llama3, chat).trained_pieces() == ["Two.<|eot_id|>"]
    assert tokenize(qwen3, chat).trained_pieces() == ["Two.<|im_end|>"]


def test_special_tokens_in_an_answer_do_not_end_its_turn(llama3, tokenize) -> None:
    chat = pair("Say it", "The token <|eot_id|> ends. <|eot_id|>\nReally.")
    assert tokenize(llama3, chat).trained_pieces() == ["The token <|eot_id|> ends. <|eot_id|>\nReally.<|eot_id|>"]


def test_a_token_across_the_turns_beginning_is_not_trained(make_tokenizer, tokenize) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = make_tokenizer(template, tokens=CHATML_TOKENS)
    # Byte-level BPE has " two" as one token, whose space belongs to the header.
    assert tokenize(tokenizer, pair("What?", "two plus two")).trained_pieces() == [" plus two<|im_end|>"]


def test_a_template_in_which_no_token_ends_an_answer_is_refused(make_tokenizer, tokenize) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(JobFailure, match="the chat template ends no answer with a token, so that the model would"):
        tokenize(make_tokenizer(template, tokens=CHATML_TOKENS), TWO_TURNS)


GLM_TOKENS = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"]
GLM_TOKENS += ["<think>", "</think>", "<tool_call>", "</tool_call>"]


def test_answers_that_end_with_the_header_behind_them_are_trained_with_it_the_last_one_too(
    make_tokenizer, tokenize
) -> None:
    glm = make_tokenizer(trl_template("glm4moe.jinja"), tokens=GLM_TOKENS, eos_token="<|endoftext|>")
    plain = tokenize(glm, TWO_TURNS)
    assert plain.trained_pieces() == [
        "\n<think></think>\nFour.<|user|>",
        "\n<think></think>\nSix, say I.<|user|>",
    ]
    assert plain.text().endswith("Six, say I.<|user|>")
    thoughtful = [*TWO_TURNS[:3], {**TWO_TURNS[3], "reasoning_content": "Two more."}]
    thoughtful[1] = {**TWO_TURNS[1], "reasoning_content": "Easy."}
    assert tokenize(glm, thoughtful).trained_pieces() == [
        "\n<think></think>\nFour.<|user|>",
        "\n<think>Two more.</think>\nSix, say I.<|user|>",
    ]
    call = {"type": "function", "function": {"name": "heat", "arguments": {"room": 4}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    chat = [TWO_TURNS[0], calling, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "Seven."}]
    trained = tokenize(glm, chat).trained_pieces()
    assert [piece.rpartition("</tool_call>")[2] for piece in trained[:1]] == ["<|observation|>"]
    assert trained[1:] == ["\n<think></think>\nSeven.<|user|>"]
    [last] = tokenize(glm, chat[:2]).trained_pieces()
    assert last == trained[0]


def test_characters_of_several_tokens_are_trained_whole(qwen3, tokenize) -> None:
    assert tokenize(qwen3, pair("Hi", "Grüße 😀")).trained_pieces() == ["<think>\n\n</think>\n\nGrüße 😀<|im_end|>"]


def test_a_template_that_hides_where_answers_begin_is_refused(make_tokenizer, tokenize) -> None:
    template = "{% for m in messages | reverse %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    result = tokenize(make_tokenizer(template, tokens=CHATML_TOKENS), TWO_TURNS)
    assert result.faults == [
        ":1: messages[1]: where this turn begins can't be told from the chat template's text; "
        "use another chatTemplate, or let user and assistant alternate from a user message on"
    ]


def test_a_template_that_writes_role_headers_but_no_generation_prompt_is_refused(make_tokenizer, tokenize) -> None:
    template = "{% for m in messages %}{{ m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    result = tokenize(make_tokenizer(template, tokens=CHATML_TOKENS), TWO_TURNS)
    assert result.faults == [
        ":1: messages[1]: the chat template knows no generation prompt, so that its role header can't be told from "
        "the answer; use another chatTemplate"
    ]


def test_a_template_without_role_headers_trains_from_behind_the_question(make_tokenizer, tokenize) -> None:
    template = "{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else ' ' + m.content + eos_token }}"
    tokenizer = make_tokenizer(template + "{% endfor %}", tokens=CHATML_TOKENS, eos_token="<|im_end|>")
    assert tokenize(tokenizer, TWO_TURNS).trained_pieces() == [" Four.<|im_end|>", " Six, say I.<|im_end|>"]


MISTRAL_TOKENS = ["<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
MISTRAL_TURNS = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + SYSTEM + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system, turns = messages[0].content, messages[1:] %}"
    "{% else %}{% set system, turns = '', messages %}{% endif %}{{ bos_token }}"
)
IN_LAST_QUESTION = (
    "(system + '\n\n' if system and m == (turns | selectattr('role', 'equalto', 'user') | list)[-1] else '')"
)
IN_LAST_MESSAGE = "(system + '\n\n' if system and loop.last else '')"


@pytest.fixture
def mistral(make_tokenizer):
    """The family's way to write: no role headers, no generation prompt, and several places for the system prompt."""

    def make(system: str = "''", *, head: str = ""):
        template = MISTRAL + head + MISTRAL_TURNS.replace("SYSTEM", system)
        return make_tokenizer(template, tokens=MISTRAL_TOKENS, bos_token="<s>", eos_token="</s>")

    return make


def test_mistral_trains_each_answer_behind_its_question_with_its_end(mistral, tokenize) -> None:
    result = tokenize(mistral(), TWO_TURNS)
    assert result.text() == ("<s>[INST] What is two plus two?[/INST] Four.</s>[INST] And three?[/INST] Six, say I.</s>")
    assert result.trained_pieces() == [" Four.</s>", " Six, say I.</s>"]


def test_mistral_nemo_writes_the_system_prompt_into_the_last_question_and_both_answers_are_trained(
    mistral, tokenize
) -> None:
    result = tokenize(mistral(IN_LAST_QUESTION), [SYSTEM, *TWO_TURNS])
    assert result.text() == (
        "<s>[INST] What is two plus two?[/INST] Four.</s>[INST] Be brief.\n\nAnd three?[/INST] Six, say I.</s>"
    )
    assert result.trained_pieces() == [" Four.</s>", " Six, say I.</s>"]


def test_mistral_small_writes_the_system_prompt_first(mistral, tokenize) -> None:
    head = "{% if system %}{{ '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{% endif %}"
    result = tokenize(mistral(head=head), [SYSTEM, *TWO_TURNS])
    assert result.text().startswith("<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST] What is")
    assert result.trained_pieces() == [" Four.</s>", " Six, say I.</s>"]


def test_mistral_7b_would_leave_the_system_prompt_out_of_what_is_trained_and_is_refused_with_it(
    mistral, tokenize
) -> None:
    tokenizer = mistral(IN_LAST_MESSAGE)
    developer = SYSTEM | {"role": "developer"}
    assert (
        tokenize(tokenizer, [SYSTEM, *TWO_TURNS]).faults
        == tokenize(tokenizer, [developer, *TWO_TURNS]).faults
        == [
            ":1: messages[0]: the chat template leaves a system message out of a chat that ends with an answer; "
            "put it into the first user message, or use another chatTemplate"
        ]
    )
    assert tokenize(tokenizer, TWO_TURNS).trained_pieces() == [" Four.</s>", " Six, say I.</s>"]


def test_chatml_trains_each_answer_with_its_end_of_turn(qwen2_5, tokenize) -> None:
    result = tokenize(qwen2_5, [SYSTEM, *TWO_TURNS], chat_template="chatml")
    assert result.trained_pieces() == ["Four.<|im_end|>", "Six, say I.<|im_end|>"]


def test_phi3_ends_a_text_that_asks_for_no_answer_and_is_masked_all_the_same(make_tokenizer, tokenize) -> None:
    tokens = ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    tokenizer = make_tokenizer(trl_template("phi3.jinja"), tokens=tokens, eos_token="<|endoftext|>")
    assert tokenize(tokenizer, TWO_TURNS).trained_pieces() == ["Four.<|end|>", "Six, say I.<|end|>\n<|endoftext|>"]


def test_a_template_that_refuses_a_chat_is_quoted_with_the_line(make_tokenizer, tokenize) -> None:
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if messages | length > 2 %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    result = tokenize(make_tokenizer(template, tokens=CHATML_TOKENS), TWO_TURNS)
    assert result.faults == [
        ":1: messages: the chat template refuses them: Roles must alternate; change them, or use another chatTemplate"
    ]


def test_generation_tags_decide_and_loss_false_still_counts(make_tokenizer, tokenize) -> None:
    tokenizer = make_tokenizer(trl_template("llama3_training.jinja"), tokens=LLAMA3_TOKENS, bos_token=LLAMA3_TOKENS[0])
    chat = [*pair("One?", "One."), *pair("Two?", "Two.")]
    assert tokenize(tokenizer, chat).trained_pieces() == ["One.<|eot_id|>", "Two.<|eot_id|>"]
    chat[1]["loss"] = False
    assert tokenize(tokenizer, chat).trained_pieces() == ["Two.<|eot_id|>"]


def test_thoughts_that_a_template_with_generation_tags_leaves_out_are_counted_too(make_tokenizer, tokenize) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = make_tokenizer(template, tokens=CHATML_TOKENS, eos_token="<|im_end|>")
    result = tokenize(tokenizer, [*pair("Two?", "<think>Easy.</think>Four."), *pair("Three?", "Six.")])
    assert result.trained_pieces() == ["Four.<|im_end|>", "Six.<|im_end|>"]
    assert result.thoughtless == 1


CHATS = [
    pair("What is two plus two?", "Four."),
    [SYSTEM, *pair("Hello", "  Hello there, how are you?  ")],
    pair("Hi", "<think>\nThey greet.\n</think>\n\nHello."),
    pair("Hi", ""),
]
MORE_TURNS = [TWO_TURNS, [SYSTEM, *TWO_TURNS, *pair("Grüße 😀", "Grüße\n\nzurück")]]


@pytest.mark.parametrize(
    ("model", "chats"), [("qwen3", CHATS), ("qwen2_5", CHATS + MORE_TURNS), ("llama3", CHATS + MORE_TURNS)]
)
def test_the_mask_is_the_one_transformers_takes_from_trls_marked_template(model, chats, tokenize, request) -> None:
    """But for the newlines around a turn, which TRL's marks for Qwen enclose and a model is not to write."""
    tokenizer = request.getfixturevalue(model)
    result = tokenize(tokenizer, *chats)
    for sample, chat in enumerate(chats):
        oracle = tokenizer.apply_chat_template(
            chat,
            chat_template=trl_template(f"{model}_training.jinja"),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert result.ids[sample] == oracle["input_ids"]
        newline = tokenizer.convert_tokens_to_ids("Ċ")
        expected = [bool(flag) for flag in oracle["assistant_masks"]]
        for place, token in enumerate(oracle["input_ids"]):
            ends_turn = place and oracle["input_ids"][place - 1] == tokenizer.eos_token_id
            begins_turn = place and expected[place] and not oracle["assistant_masks"][place - 1]
            if token == newline and (ends_turn or begins_turn):
                expected[place] = False
        assert result.trained[sample] == expected, tokenizer.decode(oracle["input_ids"])
