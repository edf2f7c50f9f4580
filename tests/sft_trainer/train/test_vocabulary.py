"""A tokenizer that is not the model's."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sft_trainer.model import get_model_config_from_hf
from sft_trainer.run import RunOptions
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.model import tiny_models as tiny
from tests.sft_trainer.train.small_run import VOCAB_SIZE, SmallRun


class SmallVocabulary(SmallRun):
    def options(self) -> RunOptions:
        options = super().options()
        return replace(options, model_cfg=options.model_cfg.model_copy(update={"vocab_size": VOCAB_SIZE - 200}))


@pytest.mark.parametrize("evaluation", [None, {"every_steps": 1}])
def test_tokens_that_the_model_has_no_row_for_are_refused_before_anything_is_trained(
    evaluation: dict | None, tmp_path: Path
) -> None:
    run = SmallVocabulary(tmp_path / "run", evaluation=evaluation)
    with pytest.raises(JobFailure) as caught:
        run.go()
    assert caught.value.reason is Reason.INVALID_CONFIGURATION
    message = caught.value.message
    assert message.startswith(f"{run.folder}/tokenizer: makes token ")
    assert re.search(
        r"makes token (\d+) of the data, but the model's embedding has 64 rows; use another tokenizer, or a vocab_size "
        r"of at least \d+$",
        message,
    )
    assert run.checkpoints() == []


def test_tokens_that_were_added_are_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    base = tiny.save_random_model(tmp_path / "base", "qwen3_tied", vocab_size=VOCAB_SIZE - 200)
    (tmp_path / "base/model.safetensors").unlink()
    run = SmallRun(tmp_path / "run", load_from=Path(base))
    options = replace(run.options(), model_cfg=get_model_config_from_hf(base))
    run.options = lambda: options
    with pytest.raises(JobFailure) as caught:
        run.go()
    assert caught.value.reason is Reason.INVALID_CONFIGURATION
    assert caught.value.message.endswith(
        "but the model's embedding has 64 rows; use the tokenizer that belongs to the model, or give the model rows "
        "for its tokens first (resize_token_embeddings(len(tokenizer)), then save_pretrained)"
    )
