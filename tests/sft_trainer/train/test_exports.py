"""Two outputs of one run on two ranks."""

import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_run import SmallRun, save_base
from torch.distributed.device_mesh import init_device_mesh

from sft_trainer.train import exports
from sft_trainer.train.world import World
from sftjob.options import LoRAConfig


def test_no_rank_gathers_an_output_before_the_one_before_it_is_written(tmp_path: Path) -> None:
    """A device's collectives are given up long before a large model is on a slow disk."""
    run = SmallRun(tmp_path / "run", total_steps=1, load_from=save_base(tmp_path / "base"), lora=LoRAConfig(rank=2))
    run.options()
    mp.spawn(_one_of_two, args=(run, tmp_path), nprocs=2)
    assert (tmp_path / "written before").read_text() == "True"
    assert (run.exported / "model.safetensors").exists()
    assert (run.adapter / "adapter_model.safetensors").exists()


def _one_of_two(rank: int, run: SmallRun, folder: Path) -> None:
    """The first rank writes slowly, the other one looks for what is written when it gathers the adapter."""
    torch.set_num_threads(1)
    write_model, gather_adapter = exports.export_model, exports.export_adapter

    def slowly(*arguments: object, **options: object) -> None:
        write_model(*arguments, **options)
        deadline = time.monotonic() + 2
        while rank == 0 and time.monotonic() < deadline and not (folder / "written before").exists():
            time.sleep(0.01)
        if rank == 0:
            (folder / "all is written").touch()

    def looking(*arguments: object, **options: object) -> None:
        if rank == 1:
            (folder / "written before").write_text(str((folder / "all is written").exists()))
        gather_adapter(*arguments, **options)

    exports.export_model, exports.export_adapter = slowly, looking
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run.go(world=World(rank=rank, size=2, device=torch.device("cpu"), mesh=init_device_mesh("cpu", (2,))))
    dist.destroy_process_group()
