"""What a job says of its data arrives at the Trainer."""

from sft_operator.lifecycle.plan import launch_plan
from sft_trainer.from_plan import run_options
from sftjob.job import ObjectMeta, SFTJob
from sftjob.spec import SFTJobSpec

COLUMNS = {"instruction": "question", "output": "answer"}


def test_datasets_have_the_format_columns_and_ratio_that_the_job_gives_them() -> None:
    spec = {
        "model": {"preset": "Qwen3Dense0P6B", "tokenizer": {"uri": "file:///m"}},
        "data": {
            "datasets": [
                {"name": "a", "uri": "file:///a", "columns": COLUMNS, "sampleRatio": 0.5},
                {"name": "b", "uri": "file:///b", "format": "text"},
            ],
            "evaluation": {"datasets": [{"name": "c", "uri": "file:///c", "columns": {"text": "body"}}]},
        },
        "output": [{"uri": "file:///tuned"}],
    }
    metadata = ObjectMeta(name="job", namespace="default", uid="uid-1")
    job = SFTJob(metadata=metadata, spec=SFTJobSpec.model_validate(spec))
    options = run_options(launch_plan(job, 1, path_of=lambda uri: uri.removeprefix("file://")))
    assert options.evaluation
    told = [
        (str(entry.dataset.anno_path), entry.dataset.format, entry.dataset.columns, entry.dataset.sample_ratio)
        for entry in (*options.dataloader_cfg.dataset_config_list, *options.evaluation.dataset_config_list)
    ]
    assert told == [
        ("/a", "auto", COLUMNS, 0.5),
        ("/b", "text", {}, 1.0),
        ("/c", "auto", {"text": "body"}, 1.0),
    ]
