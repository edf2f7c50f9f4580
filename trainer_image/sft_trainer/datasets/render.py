"""A chat as text, by a chat template: the tokenizer's own, or one of ours.

`tokenize` makes one `Renderer` and gives it to `mask`, which compares renderings of parts of a chat.
"""

import copy
import re
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sft_trainer.datasets.features import ANSWER, ASKED, TemplateFeatures
from sft_trainer.datasets.messages import Messages
from sft_trainer.datasets.template import chat_template_named, known_templates
from sftjob.failure import JobFailure, Reason

_FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro %}"
"""Put before a template that asks for the date, with what Llama 3 falls back to: today's date would change the tokens,
and with them the run, when an attempt resumes on another day."""
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class TemplateRefused(Exception):
    """The template raised for this chat: by itself, for example because roles must alternate, or since what it does
    with a value of the chat can't be done."""


class Renderer:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None) -> None:
        """`chat_template` names one of ours; None takes the tokenizer's.

        Raises JobFailure where the tokenizer or its template can't be used.
        """
        self.tokenizer = tokenizer
        self._tools: list[dict[str, Any]] | None = None
        template = chat_template_named(chat_template) if chat_template else _own_template(tokenizer)
        self.template = _FIXED_DATE + template if "strftime_now" in template else template
        self.has_generation_tags = bool(_GENERATION_TAG.search(self.template))
        added = tokenizer.added_tokens_decoder
        self.added_ids = frozenset(added)
        self._added_texts = [token.content for token in added.values()]
        self.has_generation_prompt = self._tried_out()
        if chat_template:
            self._refuse_foreign_end(chat_template)
        self.ends_turns = self._ends_turns()
        """With a token of its own. GLM's template ends an answer with the header of the message behind it."""
        if not self.has_generation_tags and not self.ends_turns and not self.header_behind(ANSWER):
            raise self._unusable("ends no answer with a token, so that the model would never stop")
        self._features = TemplateFeatures(self._text_or_nothing)

    def fitted(self, messages: Messages, tools: list[dict[str, Any]] | None) -> tuple["Renderer", Messages]:
        """For one chat: what renders with its tools, and its messages as this template wants them.

        Raises Refused for what the template would leave out.
        """
        fitted = self._features.fitted(messages, tools)
        if not tools:
            return self, fitted
        renderer = copy.copy(self)
        renderer._tools = tools
        return renderer, fitted

    def text(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """Raises TemplateRefused, or JobFailure for a template that is no template."""
        rendered = self._apply(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert isinstance(rendered, str)
        return rendered

    def header_behind(self, message: dict[str, Any]) -> str:
        """What the template writes of the message that would follow an assistant's, through its first token; empty
        where it has no token there."""
        call = [ASKED, message | {"content": ""}] if "tool_calls" in message else [ASKED, ANSWER]
        answer = {"role": "tool", "content": "That.", "tool_call_id": "call00001"} if "tool_calls" in message else ASKED
        before = self._text_or_nothing(call, self._tools)
        after = self._text_or_nothing([*call, answer], self._tools)
        if not before or not after.startswith(before):
            return ""
        return self._through_first_token(after.removeprefix(before))

    def _ends_turns(self) -> bool:
        return bool(self._through_first_token(self.text([ASKED, ANSWER]).rpartition(ANSWER["content"])[2]))

    def _through_first_token(self, text: str) -> str:
        """The text up to and with its first added token; empty where more than white space stands before that."""
        behind = text.lstrip()
        begun = [token for token in self._added_texts if token and behind.startswith(token)]
        return text[: len(text) - len(behind)] + max(begun, key=len) if begun else ""

    def assistant_mask(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Token ids, and which of them transformers finds between the template's generation tags."""
        encoded = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return encoded["input_ids"], [bool(trained) for trained in encoded["assistant_masks"]]

    def _text_or_nothing(self, messages: Messages, tools: list[dict[str, Any]] | None) -> str:
        try:
            return str(self._apply(messages, tools=tools, tokenize=False))
        except TemplateRefused:
            return ""

    def _refuse_foreign_end(self, name: str) -> None:
        """Of a turn by one of our templates, which the tokenizer may cut into several tokens as any text."""
        end = self.text([ASKED, ANSWER]).rpartition(ANSWER["content"])[2].strip()
        if end not in self._added_texts:
            raise JobFailure(
                Reason.INVALID_CONFIGURATION,
                f"chatTemplate: {name} ends a turn with {end}, which is no token of the tokenizer in "
                f"{self.tokenizer.name_or_path}, so that no answer of the model would end; use a template that fits it",
            )

    def _tried_out(self) -> bool:
        """Whether the template writes a generation prompt. Raises JobFailure where it can't write the simplest chat:
        templates that want content as typed parts leave a string out without a word.
        """
        chat = [ASKED, ANSWER]
        try:
            text, asked, prompted = (
                self.text(chat),
                self.text(chat[:1]),
                self.text(chat[:1], add_generation_prompt=True),
            )
        except TemplateRefused as error:
            raise self._unusable(f"refuses a plain question and answer: {error}") from None
        if any(message["content"] not in text for message in chat):
            raise self._unusable("leaves out content that is a plain string")
        return prompted != asked

    def _unusable(self, what: str) -> JobFailure:
        return JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{self.tokenizer.name_or_path}: the chat template {what}; "
            f"correct it, or set chatTemplate to one of {', '.join(known_templates())}",
        )

    def _apply(self, messages: Messages, **options: object):  # type: ignore[no-untyped-def]
        try:
            return self.tokenizer.apply_chat_template(
                messages, **({"chat_template": self.template, "tools": self._tools} | options)
            )
        except jinja2.TemplateSyntaxError as error:
            raise self._unusable(f"is no template, line {error.lineno}: {error.message}") from None
        except jinja2.TemplateError as error:
            raise TemplateRefused(str(error)) from None
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise TemplateRefused(f"{type(error).__name__}: {error}") from None


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Raises JobFailure for a folder without a usable tokenizer; nothing is ever downloaded."""
    if not Path(folder).is_dir():
        raise JobFailure(Reason.MODEL_UNREADABLE, f"{folder}: there is no such folder; correct the tokenizer's path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise JobFailure(
            Reason.MODEL_UNREADABLE,
            f"{folder}: holds no readable tokenizer ({str(error).splitlines()[0]}); name a Hugging Face folder with "
            "tokenizer.json and tokenizer_config.json",
        ) from None
    if not tokenizer.is_fast:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"{folder}: the tokenizer gives no offsets; use a folder with a tokenizer.json",
        )
    return tokenizer


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise JobFailure(
            Reason.INVALID_CONFIGURATION,
            f"chatTemplate: missing, and the tokenizer in {tokenizer.name_or_path} has none; "
            f"set one of {', '.join(known_templates())}",
        ) from None
