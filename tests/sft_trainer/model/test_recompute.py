"""Layers that are computed again in the backward: the same numbers, fewer bytes kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from live_tensors import LiveTensors
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from sft_trainer.model import attention, recompute
from sft_trainer.model.recompute import recomputed_layers
from sftjob.options import FSDPConfig, LoRAConfig

LAYERS = 4
NONE, HALF, FULL = (FSDPConfig(recompute_ratio=ratio) for ratio in (0.0, 0.5, 1.0))
SELECTIVE = FSDPConfig(recompute_selectively=True)
WIDE = {"hidden_size": 144, "intermediate_size": 192, "moe_intermediate_size": 136, "head_dim": 36}
"""Products over 128 numbers and fewer count as cheap."""
LENGTHS = [40, 60, 23]


@dataclass(frozen=True)
class Step:
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    kept: int
    """Bytes, from the forward to the backward."""
    products: int
    """FLOPs of the matrix products of both."""


def step(folder: str, fsdp_cfg: FSDPConfig, **arguments: Any) -> Step:
    model = tiny.built(folder, fsdp_cfg=fsdp_cfg, **arguments)
    torch.manual_seed(5)  # of dropout
    with FlopCounterMode(display=False) as flops:
        with LiveTensors(model) as live:
            loss = model(tiny.pack(tiny.documents(LENGTHS)))
        kept = live.nbytes()
        loss.backward()
    gradients = {name: gradient for name, gradient in tiny.gradients(model).items() if gradient is not None}
    return Step(loss.detach(), gradients, kept, flops.get_total_flops())


def assert_same_bits(ours: Step, reference: Step) -> None:
    assert torch.equal(ours.loss, reference.loss)
    assert ours.gradients.keys() == reference.gradients.keys()
    for name, gradient in ours.gradients.items():
        assert torch.equal(gradient, reference.gradients[name]), name


@pytest.mark.parametrize("case", ["qwen3_tied", "mistral", "gpt2", "qwen3_moe"])
def test_loss_and_gradients_are_bit_equal_and_each_layer_keeps_less(case: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, case, num_hidden_layers=LAYERS)
    none, half, full = (step(folder, fsdp_cfg) for fsdp_cfg in (NONE, HALF, FULL))
    for recomputed in (half, full):
        assert_same_bits(recomputed, none)
    # A layer keeps several times its input, whatever it is made of; what is outside of the layers stays.
    assert half.kept < 0.7 * none.kept
    assert full.kept < 0.4 * none.kept


@pytest.mark.parametrize("case", ["qwen3_tied", "llama_with_biases", "qwen3_moe"])
def test_selective_recomputation_repeats_no_product(case: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, case, num_hidden_layers=LAYERS, **WIDE)
    none, selective, full = (step(folder, fsdp_cfg) for fsdp_cfg in (NONE, SELECTIVE, FULL))
    assert_same_bits(selective, none)
    assert_same_bits(full, none)
    assert none.products == selective.products < full.products
    assert full.kept < selective.kept < 0.65 * none.kept


def test_where_some_layers_keep_their_input_alone_the_others_are_recomputed_selectively(tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "llama", num_hidden_layers=LAYERS, **WIDE)
    mixed = FSDPConfig(recompute_ratio=0.5, recompute_selectively=True)
    none, selective, both, full = (step(folder, fsdp_cfg) for fsdp_cfg in (NONE, SELECTIVE, mixed, FULL))
    assert_same_bits(both, none)
    assert both.kept == (selective.kept + full.kept) // 2
    assert both.products == (none.products + full.products) // 2


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several add up the gradients of experts' biases in an order of their own, differently each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", ["gemma2", "gpt_oss"])
def test_written_out_attention_and_experts_with_biases_are_computed_again(case: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, case, **WIDE)
    none, selective, full = (step(folder, fsdp_cfg) for fsdp_cfg in (NONE, SELECTIVE, FULL))
    assert_same_bits(selective, none)
    assert none.products < selective.products < full.products
    # Scores of every pair of tokens are not among what is kept.
    assert full.kept < selective.kept < 0.5 * none.kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_add_little_to_what_is_kept_selectively(precision: str, tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "llama", num_hidden_layers=LAYERS, dtype=torch.bfloat16, **WIDE)
    lora_cfg = LoRAConfig(rank=4, dropout=0.1)
    none, selective, whole = (
        step(folder, fsdp_cfg, precision=precision, lora_cfg=adapters)
        for fsdp_cfg, adapters in ((NONE, lora_cfg), (SELECTIVE, lora_cfg), (SELECTIVE, None))
    )
    assert_same_bits(selective, none)
    # A's results of rank 4, seven a layer, in at most fp32.
    assert selective.kept <= whole.kept + LAYERS * 7 * 4 * sum(LENGTHS) * 4


def test_each_operator_whose_result_is_kept_exists() -> None:
    import bitsandbytes  # noqa: F401 -- registers its own

    for name in {*recompute.PRODUCTS, *recompute.ATTENTION} - {"flex_attention"}:
        namespace, operator = name.split("::")
        assert getattr(getattr(torch.ops, namespace), operator).overloads(), name
    assert torch.ops.higher_order.flex_attention.name() == "flex_attention"


def test_the_recomputed_layers_are_evenly_spread() -> None:
    assert recomputed_layers(6, ratio=0.0) == []
    assert recomputed_layers(6, ratio=0.5) == [1, 3, 5]
    assert recomputed_layers(7, ratio=0.3) == [3, 6]
    assert recomputed_layers(6, ratio=1.0) == [0, 1, 2, 3, 4, 5]


def test_compiled_layers_compute_the_same_again(tmp_path: Path) -> None:
    folder = tiny.save_random_model(tmp_path, "qwen3_tied")
    results = []
    for fsdp_cfg in (NONE, FULL):
        torch.compiler.reset()
        model = tiny.built(folder, fsdp_cfg=fsdp_cfg)
        for layer in model.model.layers:
            # Traced, split into forward and backward, and run as it is: the C++ compiler takes a minute.
            layer.compile(backend="aot_eager")
        loss = model(tiny.pack(tiny.documents([12, 20])))
        loss.backward()
        results.append((loss.detach(), tiny.gradients(model)))
    (loss, gradients), (recomputed_loss, recomputed) = results
    torch.testing.assert_close(recomputed_loss, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-6 * largest, msg=name)


def test_a_compiled_layers_graphs_repeat_no_product_where_it_is_recomputed_selectively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where attention is in the layer's graph; on a CPU it is one document's here."""
    monkeypatch.setattr(
        attention, "_by_document", lambda q, k, v, _, scaling, window, *__: one(q, k, v, scaling, window)
    )
    one = attention._one_document
    folder = tiny.save_random_model(tmp_path, "qwen3_tied", **WIDE)
    results = {}
    for name, fsdp_cfg in {"none": NONE, "selective": SELECTIVE, "full": FULL}.items():
        torch.compiler.reset()
        graphs: list[torch.fx.Graph] = []
        model = tiny.built(folder, fsdp_cfg=fsdp_cfg)
        for layer in model.model.layers:
            layer.compile(backend=graphs_into(graphs))
        loss = model(tiny.pack(tiny.documents([40])))
        loss.backward()
        # Of the first layer: the backward comes to it last.
        forward, backward = graphs[0], graphs[-1]
        results[name] = (loss.detach(), tiny.gradients(model), products_in(backward), outputs(forward))
    for loss, gradients, *_ in results.values():
        assert torch.equal(loss, results["none"][0])
        for name, gradient in gradients.items():
            assert torch.equal(gradient, results["none"][1][name]), name
    # Two for each of seven matrices; six more, as what the last one gives is not asked for.
    assert [results[name][2] for name in results] == [14, 14, 20]
    assert results["none"][3] > results["selective"][3] > results["full"][3]


def graphs_into(graphs: list[torch.fx.Graph]) -> Any:
    """A backend that notes the graphs of a layer's forward and backward, cut apart as for a GPU, and runs them."""

    def run(module: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    return aot_autograd(fw_compiler=run, bw_compiler=run, partition_fn=min_cut_rematerialization_partition)


def products_in(graph: torch.fx.Graph) -> int:
    return sum(node.target == torch.ops.aten.mm.default for node in graph.nodes)


def outputs(graph: torch.fx.Graph) -> int:
    """Numbers that it hands on, to the next layer and to the backward."""
    found = [node.meta["val"] for node in graph.output_node().args[0]]
    return sum(value.numel() for value in found if isinstance(value, torch.Tensor))
