"""What a chat template writes besides role and content: tried out, because a template leaves out without a word what
it does not know.

In: a function that renders a chat. Out: the messages as that template wants them, or `Refused` for what it would
leave out. Called by `render`, once for each tokenizer.
"""

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

from sft_trainer.datasets.messages import REASONING, Messages
from sft_trainer.datasets.values import Refused

_PROBE = "qzprobe"
ASKED = {"role": "user", "content": "What?"}
ANSWER = {"role": "assistant", "content": "That."}
_SYSTEM = {"role": "system", "content": _PROBE}
_REASONING_NAMES = (REASONING, "thinking", "reasoning")
_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "Does nothing.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_CALL = {"id": "call00001", "type": "function", "function": {"name": _PROBE, "arguments": {}}}


class TemplateFeatures:
    def __init__(self, try_out: Callable[[Messages, list[dict[str, Any]] | None], str]) -> None:
        """`try_out` gives the text of a chat, empty where the template refuses it."""
        self._try_out = try_out

    def fitted(self, messages: Messages, tools: list[dict[str, Any]] | None) -> Messages:
        """Raises Refused for what the template would leave out: tools, calls, thoughts, what stands beside a call or is
        said as the system."""
        if tools and not self._writes_tools:
            raise Refused("tools: the chat template does not write them; use a model or chatTemplate that knows tools")
        fitted = [self._fitted(f"messages[{index}]", message) for index, message in enumerate(messages)]
        if fitted[0]["role"] == "system" and self._leaves_out_system:
            # Mistral 7B v0.3 writes it before a last message that is the user's: never in a chat that is trained.
            raise Refused(
                "messages[0]: the chat template leaves a system message out of a chat that ends with an answer; "
                "put it into the first user message, or use another chatTemplate"
            )
        for index, message in enumerate(fitted[1:], start=1):
            if message["role"] == "system" and self._leaves_out_later_system:
                raise Refused(
                    f"messages[{index}]: the chat template leaves out a system message that is not the first; put it "
                    "into the message behind it, or use another chatTemplate"
                )
        return fitted

    def _fitted(self, field: str, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and not self._writes_developer:
            # A developer's message is what OpenAI calls a system message since its models reason.
            return message | {"role": "system"}
        if "tool_calls" in message and not self._writes_calls:
            raise Refused(
                f"{field}.tool_calls: the chat template does not write them; "
                "use a model or chatTemplate that knows tools"
            )
        if "tool_calls" in message and self._wants_arguments_as_text:
            message = message | {"tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message and (message.get("content") or "").strip() and not self._writes_content_beside_calls:
            raise Refused(
                f"{field}.content: the chat template leaves out what is said beside tool_calls; remove it, or use a "
                "model or chatTemplate that writes both"
            )
        if REASONING in message and self._reasoning_name != REASONING:
            if self._reasoning_name is None:
                raise Refused(
                    f"{field}.{REASONING}: the chat template does not write it; put it into `content`, or remove it"
                )
            return {self._reasoning_name if name == REASONING else name: value for name, value in message.items()}
        return message

    @cached_property
    def _writes_tools(self) -> bool:
        return self._writes([ASKED], [_TOOL])

    @cached_property
    def _leaves_out_system(self) -> bool:
        """Without a word: a template that refuses it says so itself."""
        return self._leaves_out([_SYSTEM, ASKED, ANSWER])

    @cached_property
    def _leaves_out_later_system(self) -> bool:
        return self._leaves_out([ASKED, ANSWER, _SYSTEM, ASKED, ANSWER])

    @cached_property
    def _writes_developer(self) -> bool:
        return self._writes([{"role": "developer", "content": _PROBE}, ASKED])

    @cached_property
    def _writes_calls(self) -> bool:
        return self._writes_call(_CALL) or self._wants_arguments_as_text

    @cached_property
    def _wants_arguments_as_text(self) -> bool:
        """As OpenAI has them, and not as an object: DeepSeek V3's puts them together with other text."""
        return not self._writes_call(_CALL) and self._writes_call(_with_text(_CALL))

    @cached_property
    def _writes_content_beside_calls(self) -> bool:
        call = _CALL | {"function": {"name": "another", "arguments": {}}}
        call = _with_text(call) if self._wants_arguments_as_text else call
        return self._writes([ASKED, {"role": "assistant", "content": _PROBE, "tool_calls": [call]}])

    def _writes_call(self, call: dict[str, Any]) -> bool:
        return self._writes([ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}])

    @cached_property
    def _reasoning_name(self) -> str | None:
        return next((name for name in _REASONING_NAMES if self._writes([ASKED, ANSWER | {name: _PROBE}])), None)

    def _leaves_out(self, messages: Messages) -> bool:
        """Without a word."""
        text = self._try_out(messages, None)
        return bool(text) and _PROBE not in text

    def _writes(self, messages: Messages, tools: list[dict[str, Any]] | None = None) -> bool:
        return _PROBE in self._try_out(messages, tools)


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    """The same call, its arguments as JSON."""
    function = call["function"]
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
