"""What a job's ranks will hold, without running it: `python -m sft_trainer.estimate_memory TASK`.

In: a `MemoryTask` as the only argument. Out: a `MemoryEstimate` as the last line of stdout, those before it tell what
is downloaded; or on stderr why the model can't be trained, with the exit code that a job would have. Called by
`sft train --dry-run`. Reads the model's configuration, no weights.
"""

import logging
import sys
from functools import partial

import torch

from sft_trainer.downloads import patience
from sft_trainer.from_plan import model_config
from sft_trainer.hub.cached import cached
from sft_trainer.model import nf4
from sft_trainer.model.build import chosen_precision, compiles, model_on_meta
from sft_trainer.model.rotary import refuse_packs_beyond_rotary_limit
from sft_trainer.train.memory import estimate_memory
from sftjob.failure import JobFailure, exit_code
from sftjob.memory import MemoryEstimate, MemoryTask
from sftjob.spec import TrainingSpec


def estimate(task: MemoryTask) -> MemoryEstimate:
    """Raises JobFailure. What a job leaves open is as on accelerators where it asks for some, else as here."""
    spec, training = task.spec, task.spec.training or TrainingSpec()
    precision = training.precision
    folder = task.folder
    if folder is None and spec.model.preset is None:
        folder = cached("model", spec.model.load_from, on_detail=partial(print, flush=True))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiled = compiles(training.fsdp, torch.device("cuda") if spec.compute.resources.devices else device)
    if spec.compute.resources.devices:
        if precision == "auto":
            precision = "bf16"
    else:
        nf4.refuse_without_gpu(training.lora, device)
    chosen = chosen_precision(precision, device)
    model = model_on_meta(
        model_config(spec.model, folder=folder), load_from=folder, precision=chosen, lora_cfg=training.lora
    )
    packing = spec.data.packing
    refuse_packs_beyond_rotary_limit(model, pack_tokens=packing.max_length, level=packing.level)
    return estimate_memory(
        model,
        pack_tokens=packing.max_length,
        precision=chosen,
        loss_cfg=training.loss,
        fsdp_cfg=training.fsdp,
        optim_cfg=training.optimizer,
        ranks=spec.compute.world_size,
        compiled=compiled,
    )


if __name__ == "__main__":
    # What is asked again is told as a detail.
    logging.getLogger("sft_trainer").setLevel(logging.ERROR)
    # Somebody waits for a table that a job can do without.
    patience.PATIENCE_SECONDS = 10.0
    try:
        print(estimate(MemoryTask.from_json(sys.argv[1])).to_json())
    except JobFailure as failure:
        print(failure.message, file=sys.stderr)
        sys.exit(exit_code(failure.reason))
