"""What each of two gloo ranks does for `test_two_ranks.py`; in a module of its own, which a spawned process imports."""

from pathlib import Path

import tiny_models as tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from sft_trainer.model.export import export_model
from sft_trainer.model.probe import probe
from sftjob.failure import JobFailure
from sftjob.options import FSDPConfig

CASES = ["llama", "qwen3_tied", "qwen3_moe", "gemma3_text"]
RECOMPUTED = {"qwen3_tied": 1.0, "gemma3_text": 0.5}
# Divisible by two ranks in some tensors and not in others.
UNEVEN = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 45}


def each_ranks_pack(rank: int) -> tuple:
    """Rank 1 has other lengths than rank 0."""
    texts = tiny.documents([9, 13] if rank == 0 else [4, 11, 5], seed=20 + rank)
    return tiny.pack(texts)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    results = {}
    for case in CASES:
        model = tiny.built(
            str(folder / case),
            mesh=mesh,
            fsdp_cfg=FSDPConfig(reshard_after_forward=case != "llama", recompute_ratio=RECOMPUTED.get(case, 0.0)),
        )
        probe(model, vocab_size=tiny.VOCAB_SIZE)
        # As an optimiser sees them that is made now.
        parameters = list(model.parameters())
        held = sum(parameter.to_local().nbytes for parameter in parameters)
        loss = model(each_ranks_pack(rank))
        loss.backward()
        results[case] = {
            "held": held,
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
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()
