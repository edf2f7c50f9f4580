"""Manifests that must be refused, with what is said of them: by pydantic, so by `sft`, and by the API server.

`test_bad_manifests.py` gives them to the one, `tests/cluster/test_definition.py` to the other.
"""

from dataclasses import dataclass, field
from typing import Any

GOOD: dict[str, Any] = {
    "apiVersion": "sftjob.dev/v1alpha1",
    "kind": "SFTJob",
    "metadata": {"name": "job", "namespace": "default"},
    "spec": {
        "model": {
            "loadFrom": {"uri": "hf://Qwen/Qwen3-8B", "revision": "refs/pr/1"},
            "preset": "Qwen3MoE30BA3",
            "overrides": {
                "vocabSize": 1024,
                "hiddenSize": 64,
                "intermediateSize": 128,
                "numHiddenLayers": 2,
                "numAttentionHeads": 4,
                "numKeyValueHeads": 2,
                "maxPositionEmbeddings": 512,
                "tieWordEmbeddings": True,
                "headDim": 16,
                "rmsNormEps": 1e-5,
                "ropeTheta": 1e4,
                "numExperts": 8,
                "numExpertsPerTok": 2,
                "moeIntermediateSize": 32,
            },
            "tokenizer": {"uri": "pvc://models/tokenizer/"},
        },
        "data": {
            "datasets": [
                {"name": "chats", "uri": "pvc://data/.hidden/chats.jsonl", "format": "sharegpt", "sampleRatio": 0.5},
                {"name": "more", "uri": "configMap://chats/more.jsonl", "format": "text", "sampleRatio": 2.0},
                {"name": "most", "uri": "s3://a.bucket/chats/", "format": "auto", "sampleRatio": 1.0},
                {"name": "all", "uri": "hf://datasets/openai/gsm8k", "config": "main", "split": "train"}
                | {"revision": "v1.0", "format": "text", "columns": {"text": "answer"}, "sampleRatio": 1.0},
            ],
            "packing": {"level": "none", "maxLength": 512},
            "overlong": "drop",
            "badLineBudget": 7,
            "chatTemplate": "chatml",
            "evaluation": {
                "datasets": [
                    {
                        "name": "held-out",
                        "uri": "hf://datasets/_me/chats_2.0/data/.hidden/part-1.jsonl",
                        "revision": "v1.0",
                        "format": "text",
                        "columns": {"text": "body"},
                        "sampleRatio": 0.25,
                    }
                ],
                "everySteps": 5,
                "patience": 3,
                "exportBest": True,
            },
        },
        "training": {
            "totalEpoch": 2,
            "globalBatchSize": 16,
            "lora": {
                "rank": 8,
                "alpha": 8,
                "rslora": True,
                "dora": True,
                "dropout": 0.05,
                "quantize": "nf4",
                "targetModules": ["q_proj", "mlp.down_proj"],
                "modulesToSave": ["lm_head"],
            },
            "optimizer": {
                "lr": 1e-4,
                "weightDecay": 0.0,
                "betas": [0.8, 0.9],
                "eps": 1e-6,
                "maxGradNorm": 0.5,
                "skipGradNormThreshold": 8.0,
                "moments": "bf16",
            },
            "lrSchedule": {"lrType": "linear", "lrMin": 0.0, "warmupRatio": 2.0},
            "fsdp": {
                "reshardAfterForward": False,
                "torchCompile": False,
                "recomputeRatio": 0.5,
                "recomputeSelectively": True,
            },
            "loss": {"mode": "eager", "chunkSize": 8},
            "precision": "fp32",
            "seed": 4294967295,
            "reportTo": ["trackio", "wandb"],
        },
        "checkpoint": {"storage": "pvc://results/job", "everySteps": 10, "keepLast": 3, "saveMode": "async"},
        "output": [{"uri": "pvc://results/model", "format": "adapter", "dtype": "bf16"}],
        "compute": {
            "nodes": 2,
            "processesPerNode": 4,
            "image": "registry.example/trainer@sha256:00",
            "imagePullSecrets": [{"name": "registry"}],
            "resources": {
                "requests": {"cpu": "500m", "memory": "1.5Gi"},
                "limits": {"nvidia.com/gpu": 4},
            },
            "nodeSelector": {"example.com/pool": "gpu", "empty": ""},
            "tolerations": [
                {
                    "key": "nvidia.com/gpu",
                    "operator": "Equal",
                    "value": "yes",
                    "effect": "NoExecute",
                    "tolerationSeconds": 60,
                }
            ],
            "priorityClassName": "low",
            "env": [
                {"name": "NCCL_DEBUG", "value": "INFO"},
                {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            ],
        },
        "runPolicy": {
            "suspend": True,
            "preflight": "always",
            "retries": 1,
            "disruptionRetries": 2,
            "startDeadlineSeconds": 600,
            "activeDeadlineSeconds": 86_400,
            "progressDeadlineSeconds": 1800,
            "ttlSecondsAfterFinished": 0,
            "terminationGracePeriodSeconds": 30,
        },
    },
}
"""Every field set."""

LEAST: dict[str, Any] = GOOD | {
    "spec": {
        "model": {"loadFrom": {"uri": "pvc://models/base"}},
        "data": {"datasets": [{"name": "chats", "uri": "pvc://data/chats.jsonl"}]},
        "output": [{"uri": "pvc://results/model"}],
    }
}
"""What a job needs."""


SCRIPT: dict[str, Any] = GOOD | {
    "spec": {
        "script": {
            "uri": "configMap://scripts/train.py",
            "args": ["--data", "pvc://data/chats.jsonl", "--lr=1e-4", ""],
        },
        "checkpoint": {"storage": "pvc://results/job"},
    }
}
"""A script of the user's own needs no model, no data and, where it has a storage, no output."""


@dataclass(frozen=True)
class Bad:
    path: str
    says: str
    """Value and remedy."""
    spec: dict[str, Any] = field(default_factory=dict)
    """Instead of these sections of LEAST; None leaves one out."""
    server: str | None = None
    """What the API server says, where that is its own sentence and not ours."""
    metadata: dict[str, Any] = field(default_factory=dict)
    without: str | None = None
    """A section to leave out."""

    @property
    def document(self) -> dict[str, Any]:
        spec = LEAST["spec"] | self.spec
        spec = {name: section for name, section in spec.items() if name != self.without and section is not None}
        return LEAST | {"metadata": LEAST["metadata"] | self.metadata, "spec": spec}


LABEL = "use lower-case letters, digits and dashes, with a letter or digit at both ends"
NAME = "use lower-case letters, digits, dashes and dots, with a letter or digit at both ends"
ROW_FIELD = "use one of messages, system, tools, conversations, prompt, completion, instruction, input, output, text"
WORD = "use letters, digits, dashes, dots and underscores, with a letter or digit at both ends"
PLACE = "use s3://<bucket>/<path>, pvc://<claim>/<path> or file:///<absolute path>, without .. and spaces"
MODEL_PLACE = (
    "use hf://<owner>/<name>, s3://<bucket>/<path>, pvc://<claim>/<path> or file:///<absolute path>, without .. and "
    "spaces"
)
SCRIPT_PLACE = "use pvc://<claim>/<path>, configMap://<name>/<key> or file:///<absolute path>, without .. and spaces"
DATA_PLACE = (
    "use hf://datasets/<owner>/<name>[/<path>], s3://<bucket>/<path>, pvc://<claim>/<path>, configMap://<name>/<key> "
    "or file:///<absolute path>, without .. and spaces"
)
REVISION = "use a branch, a tag or a commit: letters, digits, dots, dashes, underscores and slashes"
QUANTITY = "use a number, with a unit where one is meant, as 500m, 4, 16Gi"
PRESETS = (
    "Qwen2Dense0P5B, Qwen2Dense1P5B, Qwen2Dense3B, Qwen2Dense7B, Qwen2Dense14B, Qwen2Dense32B, Qwen2Dense72B, "
    "Qwen3Dense0P6B, Qwen3Dense1P7B, Qwen3Dense4B, Qwen3Dense8B, Qwen3Dense14B, Qwen3Dense32B, Qwen3MoE30BA3, "
    "Qwen3MoE235BA22, Llama3Dense8B, Llama3Dense70B, Llama3P1Dense8B, Llama3P1Dense70B, Llama3P1Dense405B, "
    "Llama3P2Dense1B, Llama3P2Dense3B, MistralDense7B, MistralDense12B, MistralDense24B, MistralDense123B"
)
_IN_SCRIPT = "script, which says this itself; remove one"
LOAD_FROM = {"loadFrom": {"uri": "pvc://models/base"}}


def script(*arguments: str, uri: str = "pvc://scripts/train.py") -> dict[str, Any]:
    return {"model": None, "data": None, "script": {"uri": uri, "args": list(arguments)}}


def dataset(**fields: Any) -> dict[str, Any]:
    return {"data": {"datasets": [{"name": "chats", "uri": "pvc://data/chats.jsonl"} | fields]}}


def evaluation(**fields: Any) -> dict[str, Any]:
    return {"data": dataset()["data"] | {"evaluation": fields}}


def sources(model: str, data: str, **fields: Any) -> dict[str, dict[str, Any]]:
    """By path, for everything that is read: the sections in which it has these fields."""
    return {
        "spec.model.loadFrom": {"model": {"loadFrom": {"uri": model} | fields}},
        "spec.model.tokenizer": {"model": LOAD_FROM | {"tokenizer": {"uri": model} | fields}},
        **datasets(uri=data, **fields),
    }


def datasets(**fields: Any) -> dict[str, dict[str, Any]]:
    """As `sources`, of data alone."""
    data = dataset(**fields)["data"]
    return {
        "spec.data.datasets[0]": {"data": data},
        "spec.data.evaluation.datasets[0]": evaluation(datasets=data["datasets"]),
    }


def compute(**fields: Any) -> dict[str, Any]:
    return {"compute": fields}


def outputs(*uris: str, **sections: Any) -> dict[str, Any]:
    return {"output": [{"uri": uri} for uri in uris], **sections}


def resources(requests: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    return compute(resources={"requests": requests, "limits": limits})


def toleration(**fields: Any) -> dict[str, Any]:
    return compute(tolerations=[fields])


def variable(**fields: Any) -> dict[str, Any]:
    return {"compute": {"env": [{"name": "A"} | fields]}}


def secret(**fields: Any) -> dict[str, Any]:
    return variable(valueFrom={"secretKeyRef": {"name": "hub", "key": "token"} | fields})


def training(**fields: Any) -> dict[str, Any]:
    return {"training": fields}


BAD = [
    # Names
    Bad("metadata.name", f"'my.job' has the wrong form; {LABEL}", metadata={"name": "my.job"}),
    Bad(
        "metadata.name",
        f"'{'j' * 56}... is too long; use at most 63 characters",
        metadata={"name": "j" * 64},
        server=f"'{'j' * 64}' is too long; use at most 63 characters",
    ),
    # What is missing, unknown or of another type
    Bad(
        "spec.model",
        "missing, as is script; name what to start from, or a training script of your own",
        without="model",
    ),
    Bad(
        "spec.data",
        "missing, as is script; name the files to train on, or a training script of your own",
        without="data",
    ),
    Bad("spec.output", "missing; name a folder for the trained model", without="output"),
    Bad(
        "spec.training.optimiser",
        "unknown field; did you mean optimizer?",
        training(optimiser={}),
        server='unknown field "spec.training.optimiser"',
    ),
    Bad(
        "spec.training.optimizer.lr",
        "'high' has the wrong type; use a valid number, unable to parse string as a number",
        training(optimizer={"lr": "high"}),
        server='Invalid value: "string": spec.training.optimizer.lr in body must be of type number: "string"',
    ),
    Bad(
        "spec.data.datasets",
        "'chats.jsonl' has the wrong type; use a valid list",
        {"data": {"datasets": "chats.jsonl"}},
        server='Invalid value: "string": spec.data.datasets in body must be of type array: "string"',
    ),
    Bad(
        "spec.training.optimizer.betas",
        "with a second beta of 0.995 a moment in bf16 never falls again; use at most 0.99, or moments: fp32",
        training(optimizer={"betas": [0.9, 0.995], "moments": "bf16"}),
    ),
    Bad(
        "spec.training.lrSchedule.lrMin",
        "0.01 is more than the peak, 0.001; lower it, or raise optimizer.lr",
        training(optimizer={"lr": 0.001}, lrSchedule={"lrMin": 0.01}),
    ),
    Bad(
        "spec.training.lrSchedule.lrMin",
        "0.01 is more than the peak, 6e-05; lower it, or raise optimizer.lr",
        training(lrSchedule={"lrMin": 0.01, "lrType": "linear"}),
        server="0.01 is more than the peak, ",
    ),
    Bad(
        "spec.runPolicy.progressDeadlineSeconds",
        "5 is shorter than the time between two reports; use at least 10, or 0 for no limit",
        {"runPolicy": {"progressDeadlineSeconds": 5}},
    ),
    # Places
    Bad(
        "spec.model.loadFrom.uri",
        f"'Qwen/Qwen3-8B' has the wrong form; {MODEL_PLACE}",
        {"model": {"loadFrom": {"uri": "Qwen/Qwen3-8B"}}},
    ),
    Bad(
        "spec.model.tokenizer.uri",
        f"'pvc://models/a b' has the wrong form; {MODEL_PLACE}",
        {"model": LOAD_FROM | {"tokenizer": {"uri": "pvc://models/a b"}}},
    ),
    Bad(
        "spec.model.loadFrom.uri",
        f"'hf://Qwen/Qwen3-8B@main' has the wrong form; {MODEL_PLACE}",
        {"model": {"loadFrom": {"uri": "hf://Qwen/Qwen3-8B@main"}}},
    ),
    *(
        Bad(f"{path}.revision", f"'-x' has the wrong form; {REVISION}", spec)
        for path, spec in sources("hf://Qwen/Qwen3-8B", "hf://datasets/me/chats/x.jsonl", revision="-x").items()
    ),
    *(
        Bad(
            f"{path}.revision",
            "given, but pvc://a/b is not of a hub; remove it, or use a URI that begins with hf://",
            spec,
        )
        for path, spec in sources("pvc://a/b", "pvc://a/b", revision="main").items()
    ),
    Bad(
        "spec.data.datasets[0].uri",
        f"'hf://datasets/chats' has the wrong form; {DATA_PLACE}",
        dataset(uri="hf://datasets/chats"),
    ),
    *(
        Bad(
            f"{path}.{field}",
            f"given, but {uri} is not a whole dataset of a hub; remove it, or use hf://datasets/<owner>/<name>",
            spec,
        )
        for field in ("config", "split")
        for uri in ("pvc://a/b", "hf://datasets/me/chats/data")
        for path, spec in datasets(uri=uri, **{field: "main"}).items()
    ),
    *(
        Bad(
            f"{path}.split",
            "'train[:10%]' has the wrong form; use the name of one that the dataset has, as train; for a part of it "
            "set sampleRatio",
            spec,
        )
        for path, spec in datasets(uri="hf://datasets/me/chats", split="train[:10%]").items()
    ),
    *(
        Bad(
            f"{path}.config",
            "'a/b' has the wrong form; use the name of one that the dataset has, without spaces and slashes",
            spec,
        )
        for path, spec in datasets(uri="hf://datasets/me/chats", config="a/b").items()
    ),
    *(
        Bad(f"{path}.columns", f"the name 'question' has the wrong form; {ROW_FIELD}", spec)
        for path, spec in datasets(columns={"question": "text"}).items()
    ),
    *(
        Bad(
            f"{path}.columns",
            f"the name '{'p' * 56}... is too long; use at most 63 characters",
            spec,
            server=f"the name '{'p' * 64}' is too long; use at most 63 characters",
        )
        for path, spec in datasets(columns={"p" * 64: "text"}).items()
    ),
    *(
        Bad(
            f"{path}.columns",
            f"not all are fields of one format that {fields.get('format', 'auto')} allows; use those of one: messages, "
            "system, tools (messages), or conversations, system, tools (sharegpt), or prompt, completion, system, "
            "tools (prompt-completion), or instruction, input, output, system, tools (alpaca), or text (text)",
            spec,
        )
        for fields in (
            {"columns": {"instruction": "a", "text": "b"}},
            {"columns": {"instruction": "a"}, "format": "text"},
            {"columns": {"text": "a", "system": "b"}, "format": "text"},
        )
        for path, spec in datasets(**fields).items()
    ),
    Bad(
        "spec.output[0].uri",
        f"'hf://me/tuned' has the wrong form; {PLACE}",
        {"output": [{"uri": "hf://me/tuned"}]},
    ),
    Bad("spec.data.datasets[0].uri", f"'/chats.jsonl' has the wrong form; {DATA_PLACE}", dataset(uri="/chats.jsonl")),
    Bad(
        "spec.checkpoint.storage",
        f"'pvc://results' has the wrong form; {PLACE}",
        {"checkpoint": {"storage": "pvc://results"}},
    ),
    Bad(
        "spec.output[0].uri",
        f"'s3://bucket' has the wrong form; {PLACE}",
        {"output": [{"uri": "s3://bucket"}]},
    ),
    Bad(
        "spec.output[0].uri",
        f"'pvc://results/../other' has the wrong form; {PLACE}",
        {"output": [{"uri": "pvc://results/../other"}]},
    ),
    Bad(
        "spec.output[0].uri",
        f"'pvc://{'r' * 50}... is too long; use at most 512 characters",
        {"output": [{"uri": f"pvc://{'r' * 512}/model"}]},
        server="Too long: may not be more than 512 bytes",
    ),
    # Folders in one another
    *(
        Bad(
            "spec.output", f"'{told}' is given twice, or another output lies in it; give each a folder of its own", spec
        )
        for told, spec in [
            ("pvc://a/b", outputs("pvc://c/d", "pvc://a/b", "pvc://a/b")),
            ("pvc://a/b/", outputs("pvc://a/b/", "pvc://a/b")),
            ("s3://a/b", outputs("s3://a/b", "s3://a/b/c/")),
        ]
    ),
    *(
        Bad(
            "spec.output",
            f"the checkpoints' folder {storage} is or lies in '{told}'; give the output, or checkpoint.storage, "
            "another folder",
            spec,
        )
        for storage, told, spec in [
            ("pvc://a/b/", "pvc://a/b", outputs("pvc://a/b", checkpoint={"storage": "pvc://a/b/"})),
            ("pvc://a/b/c", "pvc://a/b/", outputs("pvc://a/x", "pvc://a/b/", checkpoint={"storage": "pvc://a/b/c"})),
            ("pvc://a/b.checkpoints", "pvc://a/b.checkpoints/", outputs("pvc://a/b/", "pvc://a/b.checkpoints/")),
            ("pvc://a/b", "pvc://a/b", script() | outputs("pvc://a/b", checkpoint={"storage": "pvc://a/b"})),
        ]
    ),
    # A script instead
    Bad("spec.model", f"given together with {_IN_SCRIPT}", script() | {"model": LOAD_FROM}),
    Bad("spec.data", f"given together with {_IN_SCRIPT}", script() | {"data": LEAST["spec"]["data"]}),
    Bad("spec.training", f"given together with {_IN_SCRIPT}", script() | {"training": {"seed": 42}}),
    Bad(
        "spec.checkpoint.storage",
        "missing, and there is no output to put it beside; name a folder of this job alone",
        script() | {"output": None},
    ),
    Bad(
        "spec.output",
        "missing, and checkpoint.storage, where the script's model would lie, is in a bucket; name where it goes",
        script() | {"output": None, "checkpoint": {"storage": "s3://bucket/checkpoints"}},
    ),
    Bad("spec.script.uri", f"'train.py' has the wrong form; {SCRIPT_PLACE}", script(uri="train.py")),
    Bad(
        "spec.script.uri",
        f"'hf://datasets/me/chats/train.py' has the wrong form; {SCRIPT_PLACE}",
        script(uri="hf://datasets/me/chats/train.py"),
    ),
    Bad(
        "spec.script.args",
        "'pvc://data' has the wrong form; use pvc://<claim>/<path> or configMap://<name>/<key>, without .. and spaces",
        script("--lr", "pvc://data"),
    ),
    Bad(
        "spec.script.args[0]",
        f"'{'a' * 56}... is too long; use at most 1024 characters",
        script("a" * 1025),
        server="Too long: may not be more than 1024 bytes",
    ),
    # Model and data
    Bad(
        "spec.model.loadFrom",
        "missing, as is preset; name a model folder, or a preset to train from scratch",
        {"model": {"tokenizer": {"uri": "pvc://models/base"}}},
    ),
    Bad(
        "spec.model.tokenizer",
        "missing, and there is no loadFrom to take it from; name a tokenizer's folder",
        {"model": {"preset": "Qwen3Dense8B"}},
    ),
    Bad("spec.model.preset", f"'GPT9' is not known; use one of {PRESETS}", {"model": LOAD_FROM | {"preset": "GPT9"}}),
    Bad(
        "spec.model.overrides",
        "given without preset; name the preset whose fields they replace",
        {"model": LOAD_FROM | {"overrides": {"tieWordEmbeddings": False}}},
    ),
    Bad(
        "spec.model.overrides",
        "'Llama3Dense8B' has no headDim; remove it",
        {"model": LOAD_FROM | {"preset": "Llama3Dense8B", "overrides": {"headDim": 16}}},
    ),
    Bad(
        "spec.model.overrides",
        "'Qwen3Dense8B' has no numExperts, numExpertsPerTok, moeIntermediateSize; remove them",
        {"model": LOAD_FROM | {"preset": "Qwen3Dense8B", "overrides": {"headDim": 16, "numExperts": 4}}},
    ),
    Bad("spec.data.datasets[0].name", f"'Chats' has the wrong form; {LABEL}", dataset(name="Chats")),
    Bad(
        "spec.data.datasets",
        "the name 'a' is used twice; give each dataset its own",
        {"data": {"datasets": [{"name": name, "uri": "pvc://data/x.jsonl"} for name in ("b", "a", "a")]}},
    ),
    Bad(
        "spec.data.datasets",
        "too few are given; give at least 1",
        {"data": {"datasets": []}},
        server="should have at least 1 items",
    ),
    Bad(
        "spec.data.datasets[0].format",
        "'csv' is not allowed; use 'auto', 'messages', 'sharegpt', 'prompt-completion', 'alpaca' or 'text'",
        dataset(format="csv"),
        server='Unsupported value: "csv": supported values: "auto", "messages", "sharegpt", "prompt-completion", '
        '"alpaca", "text"',
    ),
    Bad(
        "spec.data.datasets[0].sampleRatio",
        "0 is not allowed; use a value greater than 0",
        dataset(sampleRatio=0),
        server="should be greater than 0",
    ),
    Bad(
        "spec.data.packing.level",
        "'firm' is not allowed; use 'soft', 'hard' or 'none'",
        {"data": dataset()["data"] | {"packing": {"level": "firm"}}},
        server='Unsupported value: "firm": supported values: "soft", "hard", "none"',
    ),
    Bad(
        "spec.data.evaluation.fraction",
        "missing, as is datasets; hold out a fraction of the training data, or name datasets",
        evaluation(everySteps=10),
    ),
    Bad(
        "spec.data.evaluation.fraction",
        "given together with datasets; remove one",
        evaluation(fraction=0.1, datasets=dataset()["data"]["datasets"]),
    ),
    Bad(
        "spec.data.evaluation.fraction",
        "0.7 is not allowed; use a value less than or equal to 0.5",
        evaluation(fraction=0.7),
        server="should be less than or equal to 0.5",
    ),
    Bad(
        "spec.checkpoint.everySteps",
        "missing, and what is saved each half hour is never the best, so data.evaluation.exportBest has nothing to "
        "choose from; name the steps from one checkpoint to the next, or remove exportBest",
        evaluation(fraction=0.1, exportBest=True),
    ),
    Bad(
        "spec.checkpoint.everySteps",
        "150 is not a multiple of the 100 steps of data.evaluation.everySteps, so data.evaluation.exportBest would "
        "know no loss of some checkpoints; use a multiple",
        evaluation(fraction=0.1, exportBest=True) | {"checkpoint": {"everySteps": 150}},
    ),
    Bad(
        "spec.data.evaluation.fraction",
        "missing, as is datasets; hold out a fraction of the training data, or name datasets",
        evaluation(exportBest=True) | {"checkpoint": {"everySteps": 100}},
    ),
    Bad(
        "spec.data.evaluation.datasets[0].name",
        f"'Chats' has the wrong form; {LABEL}",
        evaluation(datasets=dataset(name="Chats")["data"]["datasets"]),
    ),
    Bad(
        "spec.data.evaluation.datasets[0].uri",
        f"'/chats.jsonl' has the wrong form; {DATA_PLACE}",
        evaluation(datasets=dataset(uri="/chats.jsonl")["data"]["datasets"]),
    ),
    # Training
    Bad(
        "spec.training.reportTo[0]",
        "'mlflow' is not allowed; use 'tensorboard', 'wandb' or 'trackio'",
        {"training": {"reportTo": ["mlflow"]}},
        server='Unsupported value: "mlflow": supported values: "tensorboard", "wandb", "trackio"',
    ),
    Bad(
        "spec.training.totalEpoch",
        "0 is not allowed; use a value greater than or equal to 1",
        training(totalEpoch=0),
        server="Invalid value: 0: spec.training.totalEpoch in body should be greater than or equal to 1",
    ),
    Bad(
        "spec.training.totalStep",
        "given together with totalEpoch; remove one",
        training(totalEpoch=1, totalStep=100),
    ),
    Bad(
        "spec.training.globalBatchSize",
        "10 is not divisible by the 8 ranks of compute; use a multiple of 8",
        training(globalBatchSize=10) | compute(nodes=2, processesPerNode=4),
    ),
    Bad(
        "spec.training.optimizer.betas[1]",
        "1 is not allowed; use a value less than 1",
        training(optimizer={"betas": [0.9, 1]}),
        server="should be less than 1",
    ),
    Bad(
        "spec.training.optimizer.betas",
        "too many are given; give at most 2",
        training(optimizer={"betas": [0.9, 0.95, 0.99]}),
        server="Too many: 3: must have at most 2 items",
    ),
    Bad(
        "spec.training.seed",
        "4294967296 is not allowed; use a value less than or equal to 4294967295",
        training(seed=2**32),
        server="should be less than or equal to 4294967295",
    ),
    # LoRA
    Bad(
        "spec.training.lora",
        "given without model.loadFrom, so there is no trained model to adapt; name one, or remove lora",
        {"model": {"preset": "Qwen3Dense8B", "tokenizer": {"uri": "pvc://models/base"}}} | training(lora={}),
    ),
    Bad(
        "spec.training.lora.rank",
        "0 is not allowed; use a value greater than or equal to 1",
        training(lora={"rank": 0}),
        server="should be greater than or equal to 1",
    ),
    Bad(
        "spec.training.lora.dropout",
        "1 is not allowed; use a value less than 1",
        training(lora={"dropout": 1}),
        server="should be less than 1",
    ),
    Bad(
        "spec.output",
        "'pvc://results/adapter' has the format adapter, but training.lora, which makes one, is missing; add it, or "
        "use the format hf",
        {"output": [{"uri": "pvc://results/model"}, {"uri": "pvc://results/adapter", "format": "adapter"}]},
    ),
    Bad(
        "spec.output[0].format",
        "'merged' is not allowed; use 'hf' or 'adapter'",
        {"output": [{"uri": "pvc://results/model", "format": "merged"}]},
        server='Unsupported value: "merged": supported values: "hf", "adapter"',
    ),
    # A queue
    Bad("spec.queue.name", f"'Team A' has the wrong form; {LABEL}", {"queue": {"name": "Team A"}}),
    # Placement
    Bad(
        "spec.compute.nodes",
        "0 is not allowed; use a value greater than or equal to 1",
        compute(nodes=0),
        server="should be greater than or equal to 1",
    ),
    Bad(
        "spec.compute.image",
        "'my image' has the wrong form; use an image's name without spaces",
        compute(image="my image"),
    ),
    Bad(
        "spec.compute.imagePullSecrets[0].name",
        f"'Registry' has the wrong form; {NAME}",
        compute(imagePullSecrets=[{"name": "Registry"}]),
    ),
    Bad(
        "spec.compute.resources.requests.cpu",
        f"'4 cores' has the wrong form; {QUANTITY}",
        compute(resources={"requests": {"cpu": "4 cores"}}),
    ),
    Bad(
        "spec.compute.resources.limits.memory",
        f"'16GB' has the wrong form; {QUANTITY}",
        compute(resources={"limits": {"memory": "16GB"}}),
    ),
    Bad(
        "spec.compute.resources.limits.cpu",
        "-1 is not allowed; use a value greater than or equal to 0",
        compute(resources={"limits": {"cpu": -1}}),
        server="Invalid value: -1: spec.compute.resources.limits.cpu in body should be greater than or equal to 0",
    ),
    Bad(
        "spec.compute.resources.requests",
        f"the name '_cpu' has the wrong form; {WORD}",
        compute(resources={"requests": {"_cpu": 1}}),
    ),
    Bad(
        "spec.compute.resources.requests",
        f"the name '{'c' * 56}... is too long; use at most 317 characters",
        compute(resources={"requests": {"c" * 318: 1}}),
        server=f"the name '{'c' * 318}' is too long; use at most 317 characters",
    ),
    Bad(
        "spec.compute.resources.limits",
        f"the name 'nvidia.com/' has the wrong form; {WORD}",
        compute(resources={"limits": {"nvidia.com/": 1}}),
    ),
    Bad(
        "spec.compute.resources.limits",
        f"the name '{'c' * 56}... is too long; use at most 317 characters",
        compute(resources={"limits": {"c" * 318: 1}}),
        server=f"the name '{'c' * 318}' is too long; use at most 317 characters",
    ),
    Bad(
        "spec.compute.resources.limits",
        "too many are given; give at most 16",
        compute(resources={"limits": {f"r{i}": 1 for i in range(17)}}),
        server="must have at most 16 items",
    ),
    *(
        Bad(
            "spec.compute.resources.requests",
            f"{name} is not in limits with the same amount; name it in limits alone, which requests it too",
            resources({"cpu": 1, name: asked}, limits),
        )
        for name, asked, limits in [
            ("nvidia.com/gpu", 1, {}),
            ("nvidia.com/gpu", "1", {"cpu": 1, "nvidia.com/gpu": 2}),
            ("amd.com/gpu", "2", {"nvidia.com/gpu": 2, "amd.com/gpu": 1}),
        ]
    ),
    *(
        Bad(
            "spec.compute.resources.limits",
            f"{amount} of nvidia.com/gpu is not written as a whole number; write it without a dot and without m",
            resources({}, {"cpu": "1.5", "nvidia.com/gpu": amount}),
        )
        for amount in ("0.5", "500m", "2000m")
    ),
    *(
        Bad(
            "spec.compute.resources.requests",
            f"{asked} of {name} is more than its limit, {most}; request at most that, or raise the limit",
            resources({name: asked}, {name: most}),
        )
        for name, asked, most in [
            ("cpu", 2, 1),
            ("cpu", "1001m", "1"),
            ("memory", "1Gi", "1G"),
            ("memory", "1.5Gi", 1610612735),
            ("ephemeral-storage", "9007199254740993", "9007199254740992"),
        ]
    ),
    Bad(
        "spec.compute.nodeSelector",
        f"the name 'a pool' has the wrong form; {WORD}",
        compute(nodeSelector={"a pool": "gpu"}),
    ),
    Bad(
        "spec.compute.nodeSelector",
        f"the name '{'p' * 56}... is too long; use at most 317 characters",
        compute(nodeSelector={"p" * 318: "gpu"}),
        server=f"the name '{'p' * 318}' is too long; use at most 317 characters",
    ),
    Bad(
        "spec.compute.nodeSelector.pool",
        f"'-gpu' has the wrong form; {WORD}",
        compute(nodeSelector={"pool": "-gpu"}),
    ),
    Bad(
        "spec.compute.tolerations[0].key",
        f"'/gpu' has the wrong form; {WORD}",
        toleration(key="/gpu"),
    ),
    Bad(
        "spec.compute.tolerations[0].value",
        f"'a b' has the wrong form; {WORD}",
        toleration(key="gpu", value="a b"),
    ),
    Bad(
        "spec.compute.tolerations[0].key",
        "missing with the operator Equal; name a taint's key, or use the operator Exists for every taint",
        toleration(effect="NoSchedule"),
    ),
    Bad(
        "spec.compute.tolerations[0].value",
        "given together with the operator Exists, which takes every value; remove it, or use the operator Equal",
        toleration(key="gpu", operator="Exists", value="yes"),
    ),
    *(
        Bad(
            "spec.compute.tolerations[0].tolerationSeconds",
            "given without the effect NoExecute, the only one that ends pods; give both, or remove it",
            toleration(key="gpu", tolerationSeconds=60, **effect),
        )
        for effect in ({}, {"effect": "NoSchedule"})
    ),
    Bad(
        "spec.compute.priorityClassName",
        f"'-low' has the wrong form; {NAME}",
        compute(priorityClassName="-low"),
    ),
    # Variables
    Bad(
        "spec.compute.env[0].name",
        "'1A' has the wrong form; use letters, digits and underscores, not beginning with a digit",
        variable(name="1A", value="1"),
    ),
    Bad("spec.compute.env[0].name", "'PET_NNODES' is set by sftjob; remove it", variable(name="PET_NNODES", value="1")),
    Bad("spec.compute.env[0].name", "'SFTJOB_X' is set by sftjob; remove it", variable(name="SFTJOB_X", value="1")),
    Bad("spec.compute.env[0].value", "missing, as is valueFrom; give one of them", variable()),
    *(
        Bad(
            "spec.compute.env[0].value",
            f"given for {name}, and everyone who may read the job would read it; use valueFrom, with a Secret",
            variable(name=name, value="secret"),
        )
        for name in (
            *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
            *("AWS_SSE_CUSTOMER_KEY_BASE64", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_ID_TOKEN"),
            "WANDB_API_KEY",
        )
    ),
    Bad(
        "spec.compute.env",
        "the name 'A' is used twice; give each variable once",
        compute(env=[{"name": name, "value": "1"} for name in ("B", "A", "A")]),
    ),
    Bad(
        "spec.compute.env[0].value",
        "given together with valueFrom; give one of them",
        variable(value="1", valueFrom={"secretKeyRef": {"name": "hub", "key": "token"}}),
    ),
    Bad(
        "spec.compute.env[0].valueFrom.secretKeyRef.name",
        f"'The Hub' has the wrong form; {NAME}",
        secret(name="The Hub"),
    ),
    Bad(
        "spec.compute.env[0].valueFrom.secretKeyRef.key",
        "'a/b' has the wrong form; use letters, digits, dashes, dots and underscores",
        secret(key="a/b"),
    ),
    # How often
    Bad(
        "spec.runPolicy.retries",
        "101 is not allowed; use a value less than or equal to 100",
        {"runPolicy": {"retries": 101}},
        server="Invalid value: 101: spec.runPolicy.retries in body should be less than or equal to 100",
    ),
    Bad(
        "spec.runPolicy.preflight",
        "'once' is not allowed; use 'auto', 'always' or 'never'",
        {"runPolicy": {"preflight": "once"}},
        server='Unsupported value: "once": supported values: "auto", "always", "never"',
    ),
]

NEARLY_BAD = [
    LEAST | {"spec": LEAST["spec"] | spec}
    for spec in (
        outputs("pvc://a/b", "pvc://a/bc", "pvc://c/b"),
        # What the storage holds beside its own files is left alone.
        outputs("pvc://a/b/c", checkpoint={"storage": "pvc://a/b"}),
        outputs("pvc://a/b", checkpoint={"storage": "pvc://a/bc"}),
        resources({"cpu": "1000m", "memory": "1024Mi"}, {"cpu": 1, "memory": "1Gi"}),
        resources({"cpu": "0.5", "nvidia.com/gpu": "2"}, {"nvidia.com/gpu": 2}),
        resources({"example.com/bytes": "1k"}, {"example.com/bytes": 1000}),
        # Kubernetes takes these for its own, which may be requested without a limit.
        resources({"kubernetes.io/batch-cpu": "500m"}, {}),
        toleration(operator="Exists"),
        toleration(key="gpu", operator="Exists", value="", effect="NoExecute", tolerationSeconds=0),
        toleration(key="gpu"),
    )
]
"""Manifests that must be accepted, each as near as can be to one that must not."""

_ONE_MACHINE = "is a path on one machine; put it on a volume claim and use pvc://<claim>/<path>"
ON_ONE_MACHINE = [
    Bad("spec.model.loadFrom.uri", f"'file:///m' {_ONE_MACHINE}", {"model": {"loadFrom": {"uri": "file:///m"}}}),
    Bad(
        "spec.model.tokenizer.uri",
        f"'file:///m' {_ONE_MACHINE}",
        {"model": LOAD_FROM | {"tokenizer": {"uri": "file:///m"}}},
    ),
    Bad("spec.script.uri", f"'file:///train.py' {_ONE_MACHINE}", script(uri="file:///train.py")),
    Bad("spec.data.datasets[0].uri", f"'file:///chats.jsonl' {_ONE_MACHINE}", dataset(uri="file:///chats.jsonl")),
    Bad(
        "spec.data.evaluation.datasets[0].uri",
        f"'file:///chats.jsonl' {_ONE_MACHINE}",
        evaluation(datasets=dataset(uri="file:///chats.jsonl")["data"]["datasets"]),
    ),
    Bad("spec.checkpoint.storage", f"'file:///c' {_ONE_MACHINE}", {"checkpoint": {"storage": "file:///c"}}),
    Bad("spec.output[0].uri", f"'file:///o' {_ONE_MACHINE}", {"output": [{"uri": "file:///o"}]}),
]
"""Good for `sft run`, refused by a cluster."""
