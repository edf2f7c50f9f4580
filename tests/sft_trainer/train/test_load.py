"""A model whose forward fails when it is loaded: who is told, and whether another attempt may help."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sft_trainer.model import FolderConfig
from sft_trainer.run import RunOptions
from sft_trainer.train import load
from sftjob.failure import JobFailure, Reason
from tests.sft_trainer.model import tiny_models as tiny
from tests.sft_trainer.train.small_run import VOCAB_SIZE, SmallRun


class FiveHeads(SmallRun):
    """Two key heads can't serve them, as a config.json of somebody's own may have it."""

    def options(self) -> RunOptions:
        fields = tiny.config_fields("qwen3_tied", vocab_size=VOCAB_SIZE, num_attention_heads=5, num_key_value_heads=2)
        return replace(super().options(), model_cfg=FolderConfig("", fields))


def test_shapes_that_do_not_fit_are_told_as_the_configuration_s(tmp_path: Path) -> None:
    run = FiveHeads(tmp_path / "run")
    with pytest.raises(JobFailure) as caught:
        run.go()
    assert caught.value.reason is Reason.INVALID_CONFIGURATION
    said = caught.value.message
    assert said.startswith("model: qwen3 can't be trained as it is configured: its forward fails (Number of heads in ")
    assert said.endswith("; correct its config.json, or the preset's fields")
    assert run.checkpoints() == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
    ],
    ids=["peer", "gpu", "nccl"],
)
def test_what_a_device_or_another_rank_did_meanwhile_is_not_the_configuration_s(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(load, "probe", fails)
    with pytest.raises(RuntimeError) as caught:
        SmallRun(tmp_path / "run").go()
    assert caught.value is error
