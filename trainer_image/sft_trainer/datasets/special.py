"""The tokens around what a model is trained on: an exported model is to end where its training taught it to.

Called when a model is exported.
"""

from dataclasses import dataclass

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
    end = by_field.get("eos_token_id")
    if isinstance(answer, Tokens):
        last = int(answer.ids[answer.trained][-1])
        end = last if last in tokenizer.added_tokens_decoder else end
    return SpecialTokens(by_field, end)
