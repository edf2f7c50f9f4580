"""`sft train`: a job from flags, and what its flags are."""

from collections.abc import Iterator

import pytest
import yaml
from pydantic import BaseModel
from sft_user import User

from sft_cli.flags import flags
from sftjob.job import parse_manifest
from sftjob.shapes import shape
from sftjob.spec import SFTJobSpec

FLAGS = ("--data", "data/chats.jsonl", "--model", "models/base", "--output", "models/My_Tuned")
GONE = (*FLAGS[:2], "--model", "models/gone", *FLAGS[4:])


def test_flags_alone_train_a_model_and_the_same_flags_tell_its_result_again(user: User) -> None:
    run = user.sft("train", *FLAGS, "--lr", "1e-4", "--training.totalStep", "3")
    assert (run.returncode, run.stderr) == (0, "")
    assert f"model: {user.folder}/models/My_Tuned" in run.stdout.splitlines()
    spec = parse_manifest(yaml.safe_load(user.sft("train", *FLAGS, "--dry-run").stdout)).spec
    assert spec.training is None
    again = user.sft("train", *FLAGS, "--lr", "1e-4", "--total-step", "3")
    assert again.stdout.splitlines()[0] == "runs/my-tuned: this run has ended already"
    changed = user.sft("train", *FLAGS, "--lr", "2e-4", "--total-step", "3")
    assert "changed: spec.training.optimizer.lr." in changed.stderr


def test_a_dry_run_prints_the_job_and_its_arithmetic_and_starts_nothing(user: User) -> None:
    dry = user.sft(
        "train", *GONE, "--data", "More_data.jsonl", "--betas", "0.9,0.99", "--torch-compile", "false", "--nodes", "2",
        "--global-batch-size", "8", "--checkpoints", "pvc://results/x", "--name", "first", "--dry-run",
        "--data", "hf://datasets/me/chats/train.jsonl", "--recompute-selectively", "true",
    )  # fmt: skip
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.splitlines()[-4:] == [
        f"# spec.data.datasets[1].uri: {user.folder}/More_data.jsonl: there is no such file; correct the path",
        f"# spec.model.loadFrom.uri: {user.folder}/models/gone: no such folder; name a Hugging Face model folder, or "
        "for the hub's write hf://models/gone",
        "# 2 ranks = 2 nodes x 1 process; global batch 8 packs = 2 ranks x 4 accumulation steps of 1 pack",
        f"# memory: not told, for file://{user.folder}/models/gone is not on this machine",
    ]
    manifest = parse_manifest(yaml.safe_load(dry.stdout))
    spec, here = manifest.spec, f"file://{user.folder}"
    assert manifest.metadata.name == "first"
    assert spec.model.load_from
    assert spec.model.load_from.uri == f"{here}/models/gone"
    assert [(one.name, one.uri) for one in spec.data.datasets] == [
        ("chats", f"{here}/data/chats.jsonl"),
        ("more-data", f"{here}/More_data.jsonl"),
        ("train", "hf://datasets/me/chats/train.jsonl"),
    ]
    assert spec.training.optimizer.betas == (0.9, 0.99)
    assert (spec.training.fsdp.torch_compile, spec.training.fsdp.recompute_selectively) == (False, True)
    assert spec.training.global_batch_size == 8
    assert (spec.checkpoint.storage, spec.output[0].uri) == ("pvc://results/x", f"{here}/models/My_Tuned")
    assert not (user.folder / "runs").exists()


def test_a_dry_run_refuses_heads_that_do_not_fit(user: User) -> None:
    heads = ("--num-attention-heads", "5", "--num-key-value-heads", "2")
    scratch = ("--preset", "Qwen3Dense0P6B", "--tokenizer", "models/base", *heads)
    dry = user.sft("train", *FLAGS[:2], *FLAGS[4:], *scratch, "--dry-run")
    assert (dry.returncode, dry.stderr) == (
        64,
        "spec.model.overrides.numKeyValueHeads: 2 does not divide the 5 of numAttentionHeads; change one of them\n",
    )


def test_configuration_split_and_revision_are_of_all_that_data_names(user: User) -> None:
    flags = ("--data-config", "main", "--data-split", "test", "--data-revision", "v1")
    hub = ("--data", "hf://datasets/openai/gsm8k")
    dry = user.sft("train", *FLAGS[2:], *hub, *flags, "--dry-run")
    (dataset,) = parse_manifest(yaml.safe_load(dry.stdout)).spec.data.datasets
    assert dataset.to_json_dict() == {
        "name": "gsm8k",
        "uri": "hf://datasets/openai/gsm8k",
        "config": "main",
        "split": "test",
        "revision": "v1",
        "format": "auto",
        "sampleRatio": 1.0,
    }
    mixed = user.sft("train", *FLAGS, *hub, *flags[2:4], "--dry-run")
    assert mixed.returncode == 64
    assert "spec.data.datasets[0].split: given, but file:///" in mixed.stderr
    alone = user.sft("train", "job.yaml", *flags[2:4], "--dry-run")
    assert alone.returncode == 64
    assert alone.stderr.startswith("--data-split: given without --data")


def test_what_data_and_outputs_are_like_is_told_once_for_all_or_once_for_each(user: User) -> None:
    dry = user.sft(
        "train", *FLAGS, "--output-format", "hf", "--output-format", "adapter", "--output-dtype", "bf16", "--rank", "8",
        "--output", "pvc://results/adapter", "--data", "more.jsonl", "--data-format", "alpaca",
        "--data-sample-ratio", "1", "--data-sample-ratio", "0.5", "--eval-data", "held/chats.jsonl",
        "--eval-data-format", "messages", "--dry-run",
    )  # fmt: skip
    assert (dry.returncode, dry.stderr) == (0, "")
    spec, here = parse_manifest(yaml.safe_load(dry.stdout)).spec.to_json_dict(), f"file://{user.folder}"
    assert spec["output"] == [
        {"uri": f"{here}/models/My_Tuned", "format": "hf", "dtype": "bf16"},
        {"uri": "pvc://results/adapter", "format": "adapter", "dtype": "bf16"},
    ]
    assert spec["data"]["datasets"] == [
        {"name": "chats", "uri": f"{here}/data/chats.jsonl", "format": "alpaca", "sampleRatio": 1.0},
        {"name": "more", "uri": f"{here}/more.jsonl", "format": "alpaca", "sampleRatio": 0.5},
    ]
    assert spec["data"]["evaluation"]["datasets"] == [
        {"name": "chats", "uri": f"{here}/held/chats.jsonl", "format": "messages", "sampleRatio": 1.0}
    ]
    for flags_, said in (
        (
            ("--data", "b.jsonl", "--data", "c.jsonl", "--data-format", "text", "--data-format", "auto"),
            "--data-format: given 2 times, for 3 of --data; give it once for all of them, or once for each\n",
        ),
        (
            ("--eval-data-format", "text"),
            "--eval-data-format: given without --eval-data, of which it tells; add it, or write the field into the "
            "file\n",
        ),
        (("--output-format", "gguf"), "spec.output[0].format: 'gguf' is not allowed; use 'hf' or 'adapter'\n"),
    ):
        refused = user.sft("train", *FLAGS, *flags_, "--dry-run")
        assert (refused.returncode, refused.stderr) == (64, said)


def test_columns_are_told_of_all_data_or_of_each(user: User) -> None:
    dry = user.sft(
        "train", *FLAGS, "--data", "more.jsonl", "--data-columns", "instruction=question,output=answer",
        "--data-columns", '{"text": "a,b"}', "--eval-data", "held.jsonl", "--eval-data-columns", "text=body",
        "--dry-run",
    )  # fmt: skip
    assert (dry.returncode, dry.stderr) == (0, "")
    data = parse_manifest(yaml.safe_load(dry.stdout)).spec.data
    assert [dataset.columns for dataset in data.datasets] == [
        {"instruction": "question", "output": "answer"},
        {"text": "a,b"},
    ]
    assert data.evaluation.datasets[0].columns == {"text": "body"}
    for columns, said in (
        ("question", "--data-columns: question is no map; write instruction=question,output=answer, or "),
        (
            "question=instruction",
            "spec.data.datasets[0].columns: the name 'question' has the wrong form; use one of messages, ",
        ),
        ("output=a,output=b", "--data-columns: output=a,output=b names a field twice; name each once\n"),
        (
            "instruction=a,text=b",
            "spec.data.datasets[0].columns: not all are fields of one format that auto allows; use those of one: "
            "messages, system, tools (messages), or conversations, system, tools (sharegpt), or ",
        ),
    ):
        refused = user.sft("train", *FLAGS, "--data-columns", columns, "--dry-run")
        assert refused.returncode == 64
        assert refused.stderr.startswith(said), refused.stderr


def test_the_job_that_is_printed_goes_into_any_namespace_unless_its_file_names_one(user: User) -> None:
    assert "namespace" not in yaml.safe_load(user.sft("train", *FLAGS, "--dry-run").stdout)["metadata"]
    user.file.write_text(user.file.read_text().replace("name: tiny", "name: tiny, namespace: team"))
    dry = user.sft("train", "job.yaml", "--seed", "8", "--dry-run")
    assert yaml.safe_load(dry.stdout)["metadata"]["namespace"] == "team"


COMMANDS = ["", "run", "train", "validate", "plot", "ledger", "data", "data inspect"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, user: User) -> None:
    said = user.sft(*command.split(), "--help")
    assert (said.returncode, said.stderr, "--help" in said.stdout) == (0, "", True)


def test_flags_win_over_the_file(user: User) -> None:
    user.file.write_text(user.file.read_text() + "  training: {totalStep: 5, seed: 7}\n")
    dry = user.sft("train", "job.yaml", "--seed", "8", "--dry-run")
    manifest = parse_manifest(yaml.safe_load(dry.stdout))
    assert (manifest.metadata.name, manifest.spec.training.total_step, manifest.spec.training.seed) == ("tiny", 5, 8)
    assert manifest.spec.output[0].uri == "pvc://models/tuned"
    other = user.sft("train", "job.yaml", "--total-epoch", "2", "--dry-run")
    training = parse_manifest(yaml.safe_load(other.stdout)).spec.training
    assert (training.total_epoch, training.total_step, training.seed) == (2, None, 7)
    assert manifest.spec.training.report_to == ["tensorboard"]
    for given, report_to in (("wandb,trackio", ["wandb", "trackio"]), ("", [])):
        dry = user.sft("train", "job.yaml", "--report-to", given, "--dry-run")
        assert parse_manifest(yaml.safe_load(dry.stdout)).spec.training.report_to == report_to


def test_an_output_may_be_a_uri_and_keeps_the_form_that_the_file_wants(user: User) -> None:
    user.file.write_text(
        user.file.read_text().replace(
            'models/tuned"}', 'models/tuned", format: adapter, dtype: bf16}, {uri: "pvc://b/c"}'
        )
        + "  training: {lora: {}}\n"
    )
    dry = user.sft("train", "job.yaml", "--output", "pvc://results/mine", "--dry-run")
    (output,) = parse_manifest(yaml.safe_load(dry.stdout)).spec.output
    assert (output.uri, output.format, output.dtype) == ("pvc://results/mine", "adapter", "bf16")
    flags_ = ("--output", "pvc://a/b", "--output", "pvc://a/c", "--output-dtype", "fp32")
    dry = user.sft("train", "job.yaml", *flags_, "--dry-run")
    outputs = parse_manifest(yaml.safe_load(dry.stdout)).spec.output
    assert [(one.uri, one.format, one.dtype) for one in outputs] == [
        ("pvc://a/b", "adapter", "fp32"),
        ("pvc://a/c", "hf", "fp32"),
    ]


def test_a_script_is_a_flag_too(user: User) -> None:
    dry = user.sft(
        "train", "--script", "train.py", "--args", "--lr,1e-4", "--output", "out", "--nodes", "2", "--dry-run"
    )
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.splitlines()[-2:] == [
        f"# 2 ranks = 2 nodes x 1 process; each runs file://{user.folder}/train.py",
        "# memory: not told, for only the script knows its model",
    ]
    spec = parse_manifest(yaml.safe_load(dry.stdout)).spec
    assert spec.script is not None
    assert (spec.script.uri, spec.script.args) == (f"file://{user.folder}/train.py", ["--lr", "1e-4"])
    assert (spec.model, spec.data, spec.training) == (None, None, None)
    both = user.sft("train", "--script", "train.py", "--lr", "1e-4", "--output", "out", "--dry-run")
    assert both.stderr == "spec.training: given together with script, which says this itself; remove one\n"


def test_a_list_whose_items_hold_commas_is_written_with_brackets(user: User) -> None:
    given = ("train", "--script", "train.py", "--output", "out", "--dry-run", "--args")
    dry = user.sft(*given, '["--layers=1,2", "-v"]')
    assert parse_manifest(yaml.safe_load(dry.stdout)).spec.script.args == ["--layers=1,2", "-v"]
    for wrong in ("[1]", '["a"'):
        refused = user.sft(*given, wrong)
        assert refused.returncode == 64
        assert refused.stderr == f'--script.args: {wrong} is no list of words; write ["a", "b,c"], or a,b\n'


def test_what_lies_in_a_config_map_is_refused_here_with_what_to_do(user: User) -> None:
    for flags_, said in (
        (("--script", "configMap://scripts/train.py"), "spec.script.uri: configMap://scripts/train.py"),
        (
            ("--script", "train.py", "--args", "--data,configMap://few/few.jsonl"),
            "spec.script.args[1]: configMap://few/",
        ),
    ):
        refused = user.sft("train", *flags_, "--output", "out")
        assert refused.returncode == 64
        assert refused.stderr.startswith(said)
        assert "exists only in a cluster; write its content into a file, and name that as " in refused.stderr


def test_a_file_of_odd_shapes_is_completed_or_refused(user: User) -> None:
    user.file.write_text(user.file.read_text() + "  training:\n")
    assert user.sft("train", "job.yaml", "--seed", "8", "--dry-run").returncode == 0
    for text in ("3", "{metadata: 3}", "{spec: [3]}", "metadata: {name: x}\nspec: {model: 3, data: []}"):
        user.file.write_text(text)
        refused = user.sft("train", "job.yaml", "--seed", "8", "--dry-run")
        assert (refused.returncode, refused.stdout) == (64, "")
        assert "; " in refused.stderr


def test_wrong_and_missing_values_are_refused_together_by_the_path_that_is_the_flag(user: User) -> None:
    refused = user.sft("train", "--data", "x.jsonl", "--lr", "fast", "--output", "out")
    assert (refused.returncode, refused.stdout) == (64, "")
    assert refused.stderr.splitlines() == [
        "spec.model: missing, as is script; name what to start from, or a training script of your own",
        "spec.training.optimizer.lr: 'fast' has the wrong type; use a valid number, "
        "unable to parse string as a number",
    ]  # fmt: skip


def test_every_flag_has_a_name_and_a_meaning_of_its_own(user: User) -> None:
    names = [name for flag in flags() for name in flag.names] + ["--name", "--dry-run", "--work-dir", "--claim"]
    assert len(names) == len(set(names))
    assert [flag.path for flag in flags() if not flag.meaning] == []
    shown = user.sft("train", "--help").stdout
    for name in ("--lr", "--max-length", "--keep-last", "--retries", "--tokenizer", "--data", "--output-format"):
        assert name in shown


def test_every_field_is_a_flag_but_those_that_only_clusters_heed_and_the_environment() -> None:
    def fields(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            path = f"{prefix}{field.alias or name}"
            _, nested, _ = shape(field.annotation)
            yield from fields(nested, f"{path}.") if nested else (path,)

    assert sorted(set(fields(SFTJobSpec, "")) - {flag.path for flag in flags()}) == [
        "compute.env.name",
        "compute.env.value",
        "compute.env.valueFrom.secretKeyRef.key",
        "compute.env.valueFrom.secretKeyRef.name",
        "compute.image",
        "compute.imagePullSecrets.name",
        "compute.nodeSelector",
        "compute.priorityClassName",
        "compute.resources.limits",
        "compute.resources.requests",
        "compute.tolerations.effect",
        "compute.tolerations.key",
        "compute.tolerations.operator",
        "compute.tolerations.tolerationSeconds",
        "compute.tolerations.value",
        "queue.name",
        "runPolicy.suspend",
    ]


def test_paths_are_as_a_shell_has_them_and_datasets_of_one_file_name_are_told_apart(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, user.folder = user.folder, user.folder / "below"
    user.folder.mkdir()
    monkeypatch.setenv("HOME", str(whole / "home"))
    flags = ("--data", "../data/chats.jsonl", "--data", "../claims/data/chats.jsonl", "--data", "~/my chäts.jsonl")
    flags += ("--data", "chats-2.jsonl", "--data", "~nobody-has-this.jsonl")
    dry = user.sft("train", *flags, "--model", "../models/base", "--output", "../out put", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    spec, here = parse_manifest(yaml.safe_load(dry.stdout)).spec, f"file://{whole}"
    assert spec.model.load_from
    assert spec.model.load_from.uri == f"{here}/models/base"
    assert [(one.name, one.uri) for one in spec.data.datasets] == [
        ("chats", f"{here}/data/chats.jsonl"),
        ("chats-2", f"{here}/claims/data/chats.jsonl"),
        ("my-ch-ts", f"{here}/home/my chäts.jsonl"),
        ("chats-2-2", f"{here}/below/chats-2.jsonl"),
        ("nobody-has-this", f"{here}/below/~nobody-has-this.jsonl"),
    ]
    assert spec.output[0].uri == f"{here}/out put"


def test_what_is_not_there_is_told_at_once_and_all_of_it_before_a_run_begins(user: User) -> None:
    run = user.sft("train", "--model", "Qwen/Qwen3-0.6B", "--data", "data/*.jsonl", *FLAGS[4:])
    assert (run.returncode, run.stdout) == (66, "")
    assert sorted(run.stderr.splitlines()) == [
        f"spec.data.datasets[0].uri: {user.folder}/data/*.jsonl: there is no such file; correct the path; give --data "
        "once for each file",
        f"spec.model.loadFrom.uri: {user.folder}/Qwen/Qwen3-0.6B: no such folder; name a Hugging Face model folder, or "
        "for the hub's write hf://Qwen/Qwen3-0.6B",
    ]
    assert not (user.folder / "runs/my-tuned/job.json").exists()
    corrected = user.sft("train", *FLAGS, "--total-step", "3")
    assert (corrected.returncode, corrected.stderr) == (0, "")


def test_what_can_not_be_written_is_told_before_a_run_begins(user: User) -> None:
    (user.folder / "taken").touch()
    run = user.sft("train", *FLAGS[:4], "--output", "taken/tuned", "--name", "taken")
    why = f"{user.folder}/taken is a file; name another folder"
    assert (run.returncode, run.stdout) == (73, "")
    assert run.stderr.splitlines() == [
        f"spec.checkpoint.storage: {user.folder}/taken/tuned.checkpoints: {why}",
        f"spec.output[0].uri: {user.folder}/taken/tuned: {why}",
    ]


def test_data_where_a_jobs_file_goes_is_not_read_as_yaml(user: User) -> None:
    refused = user.sft("train", *FLAGS, "data/chats.jsonl", "--dry-run")
    assert (refused.returncode, refused.stderr) == (
        64,
        "data/chats.jsonl is a data file, but a job's YAML file is expected here; give data with --data, once for each "
        "file\n",
    )


def test_a_list_is_given_with_commas_or_again_and_a_script_has_its_storage_in_its_run(user: User) -> None:
    (user.folder / "train.py").touch()
    script = ("--script", "train.py", "--args", "--lr", "--args", "3e-4", "--args", '["a,b"]', "--args", "c,d")
    dry = user.sft("train", *script, "--dry-run")
    spec = parse_manifest(yaml.safe_load(dry.stdout)).spec
    assert spec.script
    assert spec.script.args == ["--lr", "3e-4", "a,b", "c", "d"]
    assert spec.checkpoint.storage == f"file://{user.folder}/runs/train/checkpoints"
    named = user.sft("train", *script[:2], "--checkpoints", "kept", "--dry-run")
    assert parse_manifest(yaml.safe_load(named.stdout)).spec.checkpoint.storage == f"file://{user.folder}/kept"
