"""What each of two gloo ranks does for `test_two_ranks.py`; in a module of its own, which a spawned process imports."""

from pathlib import Path

import tiny_models as tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from sft_trainer.model import nf4, recompute
from sft_trainer.model.export import export_adapter, export_model
from sft_trainer.model.probe import probe
from sft_trainer.train.memory import estimate_memory
from sftjob.failure import JobFailure
from sftjob.options import AdamWConfig, CELossConfig, FSDPConfig, LoRAConfig

CASES = ["llama", "qwen3_tied", "qwen3_moe", "gemma3_text"]
RECOMPUTED = {
    "qwen3_tied": {"recompute_ratio": 1.0},
    "qwen3_moe": {"recompute_selectively": True},
    "gemma3_text": {"recompute_ratio": 0.5, "recompute_selectively": True},
}
# Divisible by two ranks in some tensors and not in others.
UNEVEN = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 45}

LORA = {
    "llama": LoRAConfig(rank=3, alpha=6, dora=True, modules_to_save=["lm_head", "model.norm"]),
    "qwen3_tied": LoRAConfig(rank=3, rslora=True, target_modules=["q_proj", "mlp.down_proj"]),
}
"""A rank of 3 is not divisible by two."""
PACKED = LORA["llama"].model_copy(update={"quantize": "nf4"})


def each_ranks_pack(rank: int) -> tuple:
    """Rank 1 has other lengths than rank 0."""
    texts = tiny.documents([9, 13] if rank == 0 else [4, 11, 5], seed=20 + rank)
    return tiny.pack(texts)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    # The products of so small models are kept too.
    recompute._NARROW = 8
    results = {}
    for case in CASES:
        model = tiny.built(
            str(folder / case),
            mesh=mesh,
            fsdp_cfg=FSDPConfig(reshard_after_forward=case != "llama", **RECOMPUTED.get(case, {})),
        )
        parts = [parameter.to_local() for parameter in model.parameters()]
        views = [part.shape for part in parts if part.untyped_storage().nbytes() > part.nbytes]
        probe(model, vocab_size=tiny.VOCAB_SIZE)
        # As an optimiser sees them that is made now.
        parameters = list(model.parameters())
        held = sum(parameter.to_local().nbytes for parameter in parameters)
        loss = model(each_ranks_pack(rank))
        loss.backward()
        results[case] = {
            "held": held,
            "views": views,
            "same_parameters": all(a is b for a, b in zip(parameters, model.parameters(), strict=True)),
            "loss": loss.detach(),
            "gradients": {name: whole(gradient) for name, gradient in tiny.gradients(model).items()},
        }
        export_model(model, folder / "exported" / case, source=str(folder / case), tokenizer_path=str(folder / case))

        scratch = tiny.built(None, config=tiny.config_of(folder / case), mesh=mesh)
        results[case]["scratch"] = {name: whole(tensor) for name, tensor in scratch.state_dict().items()}
        results[case]["scratch_loss"] = scratch(each_ranks_pack(rank)).detach()

    # One rank with nothing to train takes part in every collective of the other.
    model = tiny.built(str(folder / "llama"), mesh=mesh)
    model(each_ranks_pack(0) if rank == 0 else tiny.pack(tiny.documents([6]), trained=False)).backward()
    results["untrained_rank"] = {name: whole(gradient) for name, gradient in tiny.gradients(model).items()}

    # The parts of a tensor of another shape can have the size that a rank expects.
    try:
        tiny.built(str(folder / "longer"), mesh=mesh)
        results["longer"] = "loaded"
    except JobFailure as failure:
        results["longer"] = failure.message

    bf16 = tiny.built(str(folder / "llama"), mesh=mesh, precision="bf16")
    probe(bf16, vocab_size=tiny.VOCAB_SIZE)
    loss = bf16(each_ranks_pack(rank))
    loss.backward()
    results["bf16"] = {
        "loss": loss.detach(),
        "dtypes": {parameter.dtype for parameter in bf16.parameters()} | {p.grad.dtype for p in bf16.parameters()},
    }

    for case, lora_cfg in LORA.items():
        source = str(folder / case)
        model = tiny.built(source, mesh=mesh, lora_cfg=lora_cfg)
        results[f"{case} adapted"] = {"initial": trained(model)}
        fill_b(model)
        probe(model, vocab_size=tiny.VOCAB_SIZE)
        loss = model(each_ranks_pack(rank))
        loss.backward()
        gradients = {name: gradient for name, gradient in tiny.gradients(model).items() if gradient is not None}
        results[f"{case} adapted"] |= {
            "loss": loss.detach(),
            "gradients": {name: whole(gradient) for name, gradient in gradients.items()},
        }
        export_adapter(model, folder / "adapter" / case, base=source, tokenizer_path=source)
        export_model(model, folder / "merged" / case, source=source, tokenizer_path=source)
    held = tiny.built(str(folder / "bf16"), mesh=mesh, precision="bf16", lora_cfg=LoRAConfig())
    loss = held(each_ranks_pack(rank))
    loss.backward()
    results["bf16 adapted"] = {"loss": loss.detach(), "dtype": held.model.layers[0].mlp.up_proj.weight.dtype}
    halves = tiny.built(str(folder / "bf16"), mesh=mesh, precision="bf16")
    results["bf16 whole"] = {"estimated": gathered(halves, FSDPConfig())}
    results["bf16 whole"] |= {"loss": halves(each_ranks_pack(rank)).detach(), "gathered": whole_here(halves)}
    unfreed = FSDPConfig(reshard_after_forward=False)
    kept = tiny.built(str(folder / "bf16"), mesh=mesh, precision="bf16", fsdp_cfg=unfreed)
    results["bf16 unfreed"] = {"estimated": gathered(kept, unfreed)}
    kept(each_ranks_pack(rank))
    results["bf16 unfreed"]["gathered"] = whole_here(kept)
    nf4.DEVICES = ("cpu",)
    packed = tiny.built(str(folder / "llama"), mesh=mesh, lora_cfg=PACKED)
    fill_b(packed)
    probe(packed, vocab_size=tiny.VOCAB_SIZE)
    loss = packed(each_ranks_pack(rank))
    loss.backward()
    results["packed"] = {
        "loss": loss.detach(),
        "gradients": {name: whole(g) for name, g in tiny.gradients(packed).items() if g is not None},
        "codes": packed.model.layers[1].mlp.down_proj.get_base_layer().weight.data,
        "held": sum(getattr(p, "_local_tensor", p).nbytes for p in packed.parameters()),
        "weights": estimate_memory(
            packed,
            pack_tokens=9,
            precision="fp32",
            loss_cfg=CELossConfig(),
            fsdp_cfg=FSDPConfig(),
            optim_cfg=AdamWConfig(),
        ).weights,
    }
    export_adapter(packed, folder / "packed adapter", base=str(folder / "llama"), tokenizer_path=str(folder / "llama"))
    export_model(packed, folder / "packed merged", source=str(folder / "llama"), tokenizer_path=str(folder / "llama"))
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def gathered(model: torch.nn.Module, fsdp_cfg: FSDPConfig) -> int:
    options = {"loss_cfg": CELossConfig(), "optim_cfg": AdamWConfig()}
    return estimate_memory(model, pack_tokens=9, precision="bf16", fsdp_cfg=fsdp_cfg, **options).gathered


def whole_here(model: torch.nn.Module) -> int:
    """After a forward: what is no DTensor is gathered until the backward."""
    return sum(p.nbytes for p in model.parameters() if not isinstance(p, DTensor))


def fill_b(model: torch.nn.Module) -> None:
    """B begins as 0, where the gradient of A is 0 too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.03)


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()
