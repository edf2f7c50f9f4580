"""What a file of rows, or a folder of them, becomes without training: `python -m sft_trainer.inspect_data TASK`.

In: an `InspectionTask` as the only argument. Out: an `Inspection` as the last line of stdout, those before it tell what
is being done; or on stderr what is wrong with the data, with the exit code that a job would have. Called by
`sft data inspect`.
"""

import logging
import sys
import tempfile
from pathlib import Path

from sft_trainer.datasets import OpenaiTokenizeFunctionConfig
from sft_trainer.datasets.config import DataloaderConfig, DatasetConfig
from sft_trainer.datasets.prepare import prepare_data
from sft_trainer.datasets.render import load_tokenizer
from sft_trainer.datasets.shown import pieces
from sft_trainer.hub.cached import cached
from sftjob.failure import JobFailure, exit_code
from sftjob.inspection import Inspection, InspectionTask


def inspect(task: InspectionTask) -> Inspection:
    """Raises JobFailure, for bad lines with file, line and field."""
    of_hub, model_of_hub = task.hub_dataset, task.hub_model
    file = cached("dataset", of_hub, on_detail=_tell) if of_hub else task.file
    model = cached("model", model_of_hub, on_detail=_tell) if model_of_hub else task.model
    entry = {
        "dataset": DatasetConfig(name="inspected", anno_path=file, format=task.format, columns=task.columns),
        "tokenize_fn": OpenaiTokenizeFunctionConfig(chat_template=task.chat_template),
    }
    config = DataloaderConfig(
        dataset_config_list=[entry],
        pack_max_length=task.max_length,
        overlong=task.overlong,
        bad_line_budget=task.bad_line_budget,
    )
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(config, tokenizer_path=model, cache_dir=Path(folder), seed=0, on_detail=_tell)
        tokenizer = load_tokenizer(model)
        shown = range(min(task.samples, data.receipt.samples))
        return Inspection(
            format=data.caches[0].meta.key.row_format,
            receipt=data.receipt,
            samples=[pieces(data, tokenizer, index) for index in shown],
        )


def _tell(detail: str | None) -> None:
    if detail:
        print(detail, flush=True)


if __name__ == "__main__":
    # What is asked again is told as a detail.
    logging.getLogger("sft_trainer").setLevel(logging.ERROR)
    try:
        print(inspect(InspectionTask.from_json(sys.argv[1])).to_json())
    except JobFailure as failure:
        print(failure.message, file=sys.stderr)
        sys.exit(exit_code(failure.reason))
