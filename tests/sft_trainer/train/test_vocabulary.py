"""A tokenizer that is not the model's."""

from dataclasses import replace
from pathlib import Path

import pytest

from sft_trainer.run import RunOptions
from sftjob.failure import JobFailure, Reason
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
    assert message.endswith("but the model's embedding has 64 rows; use the tokenizer that belongs to the model")
    assert run.checkpoints() == []
