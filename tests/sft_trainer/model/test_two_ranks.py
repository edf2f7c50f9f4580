"""Two gloo ranks against one process, in fp32: memory, losses, gradients, weights from scratch, export."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
import torch.multiprocessing as mp
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from two_ranks import CASES, LORA, PACKED, UNEVEN, each_ranks_pack, fill_b, trained, work

from sft_trainer.model import nf4
from sft_trainer.model.export import export_adapter, export_model

CASE = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the models that the ranks read, and what they left."""
    folder = tmp_path_factory.mktemp("two_ranks")
    for case in CASES:
        tiny.save_random_model(folder / case, case, **UNEVEN)
    tiny.save_random_model(folder / "bf16", "llama", dtype=torch.bfloat16)
    longer = folder / "longer"
    tiny.save_random_model(longer, "llama", **UNEVEN | {"vocab_size": 98})
    config = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps(config | {"vocab_size": 97}))
    mp.spawn(work, args=(folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@CASE
def test_each_rank_holds_half_of_the_parameters_bytes(case: str, folder: Path, ranks: list) -> None:
    whole = sum(parameter.nbytes for parameter in tiny.built(str(folder / case)).parameters())
    assert sum(rank[case]["held"] for rank in ranks) == whole
    assert max(rank[case]["held"] for rank in ranks) < 0.54 * whole


@CASE
def test_no_rank_keeps_whole_tensors_behind_its_parts(case: str, ranks: list) -> None:
    assert [rank[case]["views"] for rank in ranks] == [[], []]


@CASE
def test_the_parameters_after_the_probe_are_those_that_training_updates(case: str, ranks: list) -> None:
    assert all(rank[case]["same_parameters"] for rank in ranks)


@CASE
def test_losses_and_summed_gradients_equal_one_process(case: str, folder: Path, ranks: list) -> None:
    model = tiny.built(str(folder / case))
    losses = [model(each_ranks_pack(rank)) for rank in range(2)]
    sum(losses).backward()
    for rank in range(2):
        torch.testing.assert_close(ranks[rank][case]["loss"], losses[rank].detach(), rtol=1e-5, atol=0)
        _assert_gradients_equal(ranks[rank][case]["gradients"], tiny.gradients(model))


def test_a_rank_without_a_trained_token_adds_nothing_and_hangs_nothing(folder: Path, ranks: list) -> None:
    model = tiny.built(str(folder / "llama"))
    model(each_ranks_pack(0)).backward()
    _assert_gradients_equal(ranks[1]["untrained_rank"], tiny.gradients(model))


@CASE
def test_weights_from_scratch_do_not_depend_on_the_number_of_ranks(case: str, folder: Path, ranks: list) -> None:
    model = tiny.built(None, config=tiny.config_of(folder / case))
    for name, tensor in model.state_dict().items():
        assert torch.equal(ranks[1][case]["scratch"][name], tensor), name
    for rank in range(2):
        expected = model(each_ranks_pack(rank)).detach()
        torch.testing.assert_close(ranks[rank][case]["scratch_loss"], expected, rtol=1e-5, atol=0)


@CASE
def test_the_export_of_two_ranks_loads_clean_and_equal(case: str, folder: Path) -> None:
    exported, info = AutoModelForCausalLM.from_pretrained(folder / "exported" / case, output_loading_info=True)
    assert {kind: set(keys) for kind, keys in info.items()} == {
        "missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": set(),
    }  # fmt: skip
    source = tiny.transformers_model(str(folder / case)).state_dict()
    assert exported.state_dict().keys() == source.keys()
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, source[name]), name


def test_a_tensor_whose_parts_fit_by_chance_is_refused(ranks: list) -> None:
    for rank in ranks:
        assert "lm_head.weight ([98, 32], expected [97, 32])" in rank["longer"]


def test_bf16_keeps_master_weights_and_gradients_in_fp32(folder: Path, ranks: list) -> None:
    model = tiny.built(str(folder / "llama"))
    for rank in range(2):
        exact = model(each_ranks_pack(rank)).detach()
        assert ranks[rank]["bf16"]["dtypes"] == {torch.float32}
        assert ranks[rank]["bf16"]["loss"] != exact
        torch.testing.assert_close(ranks[rank]["bf16"]["loss"], exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("case", LORA)
def test_adapters_begin_learn_and_come_out_of_two_ranks_as_of_one(case: str, folder: Path, ranks: list) -> None:
    model = tiny.built(str(folder / case), lora_cfg=LORA[case])
    for name, tensor in trained(model).items():
        assert torch.equal(ranks[1][f"{case} adapted"]["initial"][name], tensor), name
    fill_b(model)
    losses = [model(each_ranks_pack(rank)) for rank in range(2)]
    sum(losses).backward()
    expected = {name: gradient for name, gradient in tiny.gradients(model).items() if gradient is not None}
    for rank in range(2):
        torch.testing.assert_close(ranks[rank][f"{case} adapted"]["loss"], losses[rank].detach(), rtol=1e-5, atol=0)
        _assert_gradients_equal(ranks[rank][f"{case} adapted"]["gradients"], expected)

    adapted = PeftModel.from_pretrained(tiny.transformers_model(str(folder / case)), folder / "adapter" / case)
    whole = adapted.merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged" / case).state_dict()
    assert merged.keys() == whole.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, whole[name]), name
    assert not torch.equal(merged["model.layers.1.mlp.down_proj.weight"], _source(folder / case))


def _source(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]


def test_a_frozen_base_in_bf16_gives_the_numbers_of_one_in_fp32_on_two_ranks(ranks: list) -> None:
    for rank in ranks:
        assert rank["bf16 adapted"]["dtype"] == torch.bfloat16
        assert torch.equal(rank["bf16 adapted"]["loss"], rank["bf16 whole"]["loss"])


def test_what_stays_whole_on_each_rank_until_the_backward_is_estimated(ranks: list) -> None:
    outside = 2 * 96 * 32 + 32
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    for rank in ranks:
        assert rank["bf16 whole"]["gathered"] == rank["bf16 whole"]["estimated"] == outside * 2
        assert rank["bf16 unfreed"]["gathered"] == rank["bf16 unfreed"]["estimated"] == (outside + 2 * layer) * 2


def test_each_rank_packs_all_of_the_base_and_its_adapters_learn_as_on_one(
    folder: Path, ranks: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4, "DEVICES", ("cpu",))
    source = str(folder / "llama")
    model = tiny.built(source, lora_cfg=PACKED)
    fill_b(model)
    losses = [model(each_ranks_pack(rank)) for rank in range(2)]
    sum(losses).backward()
    expected = {name: gradient for name, gradient in tiny.gradients(model).items() if gradient is not None}
    for rank in range(2):
        found = ranks[rank]["packed"]
        torch.testing.assert_close(found["loss"], losses[rank].detach(), rtol=1e-5, atol=0)
        _assert_gradients_equal(found["gradients"], expected)
        assert torch.equal(found["codes"], model.model.layers[1].mlp.down_proj.get_base_layer().weight.data)
        # The scales: one byte for 64 elements, 4 bytes for 256 of these.
        assert found["held"] < found["weights"] < 1.2 * found["held"]
    export_adapter(model, tmp_path / "adapter", base=source, tokenizer_path=source)
    export_model(model, tmp_path / "merged", source=source, tokenizer_path=source)
    for ours, theirs in (("adapter", "packed adapter"), ("merged", "packed merged")):
        alone, together = (
            load_file(next((root / name).glob("*.safetensors"))) for root, name in ((tmp_path, ours), (folder, theirs))
        )
        assert [name for name, tensor in alone.items() if not torch.equal(together[name], tensor)] == []


def _assert_gradients_equal(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
