"""The tokens around what a model is trained on: an exported model is to end where its training taught it to.

Called when a model is exported.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sft_trainer.datasets.features import ANSWER, ASKED
from sft_trainer.datasets.formats import Chat
from sft_trainer.datasets.render import load_tokenizer
from sft_trainer.datasets.rows import Tokens
from sft_trainer.datasets.tokens import Sample, SampleTokenizer
from sftjob.failure import JobFailure

_CHAT = Chat(messages=[ASKED, ANSWER], trained=[False, True])


@dataclass(frozen=True)
class SpecialTokens:
    by_field: dict[str, int]
    """As config.json names them: `bos_token_id`, `eos_token_id`, `pad_token_id`; those that the tokenizer has."""
    end: int | None
    """What the last trained token of an answer is, where it is a special one; else what ends a text."""


def special_tokens(tokenizer_path: str, *, chat_template: str | None) -> SpecialTokens:
    """`chat_template` names one of ours; None takes the tokenizer's. Raises JobFailure without a usable tokenizer."""
    tokenizer = load_tokenizer(tokenizer_path)
    by_field = {
        f"{name}_token_id": token
        for name in ("bos", "eos", "pad")
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None
    }
    try:
        [answer] = SampleTokenizer(tokenizer, chat_template=chat_template).tokens([Sample(1, _CHAT)])
    except JobFailure:
        # Passages need no template.
        answer = None
    trained = answer.ids[answer.trained].tolist() if isinstance(answer, Tokens) else []
    return SpecialTokens(by_field, _end_of(trained, tokenizer) or by_field.get("eos_token_id"))


def _end_of(trained: list[int], tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The last special token, where at most white space is trained behind it, as some templates with tags have it."""
    for token in reversed(trained):
        if token in tokenizer.added_tokens_decoder:
            return token
        if tokenizer.decode([token]).strip():
            break
    return None
