"""Every reason that a status can give, what it means and what to do: `python -m sftjob.reasons` writes the page."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from sftjob.failure import DISRUPTIONS, NEVER_RETRIED, Obstacle, Reason, Verdict, exit_code
from sftjob.names import RETRY_ANNOTATION


class Explanation(NamedTuple):
    meaning: str
    remedy: str


_GO_ON = "the message names the field, the value and what to change"

EXPLANATIONS: Mapping[StrEnum, Explanation] = {
    Reason.SUCCEEDED: Explanation("All ranks ended with 0, and the final checkpoint is proven.", "none needed"),
    Reason.PREPARED: Explanation(
        "The pre-flight found everything ready: the next attempt trains. Not the job's success.", "none needed"
    ),
    Reason.INVALID_CONFIGURATION: Explanation("The spec does not fit the model, the data or the machine.", _GO_ON),
    Reason.INVALID_DATA: Explanation("A file of data is missing or has rows that can't be used.", _GO_ON),
    Reason.MODEL_UNREADABLE: Explanation("Model or tokenizer can't be read.", "correct its folder; see the message"),
    Reason.HUB_UNREACHABLE: Explanation(
        "The model hub gave no useful answer.", "see that the pods reach it, or name another one with `HF_ENDPOINT`"
    ),
    Reason.BUCKET_UNREACHABLE: Explanation(
        "The object store gave no useful answer.",
        "see that the pods reach it, and that `AWS_ENDPOINT_URL` and `AWS_REGION` name the right one",
    ),
    Reason.STORAGE_REFUSED: Explanation(
        "Storage or an output belongs to another job, or to nobody known.",
        "name another folder, or delete the one that the message names",
    ),
    Reason.STORAGE_UNAVAILABLE: Explanation(
        "Storage can't be written.",
        "give the pods' user (1000) write access, and look at the volume; for a bucket, look at its credentials",
    ),
    Reason.STORAGE_FULL: Explanation(
        "The volume has no room left. The last whole checkpoint that was asked for is intact.",
        "make room or enlarge the volume, or lower `spec.checkpoint.keepLast` where it is more than 2",
    ),
    Reason.STORAGE_NOT_SHARED: Explanation(
        "A node does not see what node 0 writes to storage.",
        "use a volume that all nodes mount (ReadWriteMany); for a bucket, see that `AWS_ENDPOINT_URL` is the same on "
        "all nodes",
    ),
    Reason.PREEMPTED: Explanation(
        "It was told to stop: evicted, displaced, its pod deleted, or suspended.",
        "none needed; `spec.compute.priorityClassName` decides who displaces whom",
    ),
    Reason.SUPERSEDED: Explanation(
        "A later attempt, or another launcher of this one, has the right to train.", "none needed"
    ),
    Reason.NON_FINITE_GRADIENT: Explanation(
        "Loss or gradient is not a finite number (NaN, infinite) several steps in a row.",
        "lower `spec.training.optimizer.lr`, and look at the samples that the message names",
    ),
    Reason.OUT_OF_MEMORY: Explanation(
        "The kernel ended the container for its memory, or it could not get any. The next attempt lets half as many "
        "tokens through the model at a time, with the same global batch and loss, where a pack has several documents.",
        "raise `spec.compute.resources.limits.memory`, or use shorter packs (`spec.data.packing.maxLength`)",
    ),
    Reason.GPU_OUT_OF_MEMORY: Explanation(
        "A rank could not get memory on its GPU. The next attempt lets half as many tokens through the model at a "
        "time, with the same global batch and loss, where a pack has several documents. A single rank does so at once.",
        "use `spec.training.fsdp.recomputeSelectively`, shorter packs (`spec.data.packing.maxLength`), more "
        "`spec.training.fsdp.recomputeRatio`, `spec.training.lora`, or more ranks",
    ),
    Reason.LOAD_OUT_OF_MEMORY: Explanation(
        "Memory ran out before any pack went through the model: while it, a checkpoint or the data was loaded, or a "
        "process began. Smaller parts of packs would not help, so the next attempt takes what this one took. Where a "
        "GPU is too small by its size alone, it is `InvalidConfiguration`.",
        "use more ranks, larger devices (for CPUs `spec.compute.resources.limits.memory`), or `spec.training.lora`; "
        "see whether others hold the memory",
    ),
    Reason.GPU_FAULT: Explanation(
        "A GPU or its link reported an error that only broken hardware brings about: uncorrectable ECC or NVLink. Or "
        "the pod's node had no healthy GPU for it.",
        "have the node looked at. The next attempts stay away from it (`status.attempts.avoidedNodes`)",
    ),
    Reason.HANG: Explanation(
        "No rank went on, for `spec.runPolicy.progressDeadlineSeconds` or, without one, for far longer than was normal "
        "before.",
        "look at the stacks of all ranks, in storage, of which the message names file, rank and frames; set or raise "
        "`spec.runPolicy.progressDeadlineSeconds` where a stage is just long",
    ),
    Reason.RANK_KILLED: Explanation(
        "A rank was ended by a signal from outside, or crashed.",
        "look at signal and log: SIGKILL is often memory, SIGSEGV and SIGABRT a library, SIGBUS `/dev/shm`",
    ),
    Reason.RANK_FAILED: Explanation("A rank raised an exception.", "look at the message and the log"),
    Reason.TORCHRUN_LOST: Explanation(
        "The process that starts the ranks ended without a cause.", "nothing if it happened once; else check the log"
    ),
    Reason.NODE_LOST: Explanation(
        "The cluster's node stopped answering, or is gone, with its pod.", "none needed, or look at the node"
    ),
    Reason.LAUNCHER_LOST: Explanation(
        "A launcher ended without a word, or a success could not be proven.",
        "none where it happens once; else look whether pods are killed or deleted by force",
    ),
    Reason.LAUNCHER_FAILED: Explanation(
        "A fault of sftjob's own, or a container that can't be started or is not of a trainer's image.",
        "look at `compute.image` where the message names an image; else report it with the message",
    ),
    Reason.NOT_STARTED: Explanation(
        "Not all pods ran within `spec.runPolicy.startDeadlineSeconds`, or the attempt was suspended by its queue, or "
        "by somebody else, before any pod ran. Or the cluster took a pod away, or its node refused it, before it ran.",
        "the message says what was in the way; ask for what the cluster has, or wait longer",
    ),
    Reason.DEADLINE_EXCEEDED: Explanation(
        "The running time of `spec.runPolicy.activeDeadlineSeconds` is over. What was trained is saved.",
        f"raise it and set the annotation `{RETRY_ANNOTATION}`",
    ),
    Verdict.RETRIES_EXHAUSTED: Explanation(
        "More attempts failed than `spec.runPolicy.retries` allows; the message names the last cause.",
        f"mend the cause, then set the annotation `{RETRY_ANNOTATION}`",
    ),
    Verdict.DISRUPTION_RETRIES_EXHAUSTED: Explanation(
        "More attempts were disturbed than `spec.runPolicy.disruptionRetries` allows.",
        f"run where pods are disturbed less, or raise the limit, then set the annotation `{RETRY_ANNOTATION}`",
    ),
    Verdict.NO_PROGRESS: Explanation(
        "Three attempts in a row left no newer checkpoint.",
        "mend the cause that the message names, or save more often (`spec.checkpoint.everySteps`), then set the "
        f"annotation `{RETRY_ANNOTATION}`",
    ),
    Obstacle.UNSCHEDULABLE: Explanation(
        "No node takes a pod.", "ask in `spec.compute` for what the cluster has, or wait for it"
    ),
    Obstacle.SCHEDULING_GATED: Explanation(
        "Something holds the pods back by scheduling gates.",
        "see which in the message; look whether whoever sets them runs, or have the job's pods left alone",
    ),
    Obstacle.IMAGE_PULL_FAILED: Explanation(
        "The image can't be pulled.", "correct `spec.compute.image`, or name its secret in `imagePullSecrets`"
    ),
    Obstacle.CLAIM_MISSING: Explanation("A PersistentVolumeClaim does not exist.", "create it"),
    Obstacle.CLAIM_NOT_SHARED: Explanation(
        "Several nodes need a claim that serves one.", "use one that is ReadWriteMany, or `spec.compute.nodes: 1`"
    ),
    Obstacle.VOLUME_NOT_MOUNTED: Explanation(
        "A volume can't be mounted, or lies where no node takes the pod.",
        "see the message; look at its claim and its storage",
    ),
    Obstacle.CONFIG_MAP_MISSING: Explanation("A ConfigMap, or a key of it, does not exist.", "create it"),
    Obstacle.SECRET_MISSING: Explanation("A Secret, or a key of it, does not exist.", "create it"),
    Obstacle.CONTAINER_REFUSED: Explanation(
        "The container, or one that somebody's webhook puts beside it, can't be started, or the pod not set up.",
        "see the message",
    ),
    Obstacle.POD_REFUSED: Explanation(
        "The API server refuses the pods, or the services by which several find each other: quota, Pod Security, a "
        "missing service account or priority class.",
        "see the message",
    ),
    Obstacle.ATTEMPT_REFUSED: Explanation(
        "The API server refuses the attempt's PyTorchJob, often because its webhook is away.", "see the message"
    ),
    Obstacle.NAME_CONFLICT: Explanation(
        "A PyTorchJob of the attempt's name belongs to somebody else.", "delete it, or name the job differently"
    ),
    Obstacle.CONTROLLER_SILENT: Explanation(
        "No controller has picked up the attempt's PyTorchJob.", "check that Kubeflow's training-operator runs"
    ),
    Obstacle.QUEUE_SILENT: Explanation(
        "No controller has picked up the attempt for its queue.",
        "check that Kueue runs, and has `kubeflow.org/pytorchjob` among its integrations",
    ),
    Obstacle.QUEUE_MISSING: Explanation(
        "The cluster holds the attempt back as if for a queue, and it has none.",
        "create the job anew with `spec.queue.name`, or have the PyTorchJobs of its namespace left alone",
    ),
    Obstacle.PYTORCH_JOBS_MISSING: Explanation(
        "The cluster has no PyTorchJobs.", "install Kubeflow's training-operator, v1.9 or later"
    ),
    Obstacle.INVALID_SPEC: Explanation(
        "The object was stored under the rules of another version, and breaks those of this one.",
        "see the message; create the job anew",
    ),
}

_HEADER = f"""# Reasons

Generated from `api/sftjob` by `make generate`. These are all that a status gives. A job that has failed goes on from
its last checkpoint, with fresh budgets, once the annotation `{RETRY_ANNOTATION}` gets a new value
(`kubectl annotate --overwrite sftjob NAME {RETRY_ANNOTATION}=$(date +%s)`); with `sft run`, by the same command again.

## Why an attempt ended

`status.attempts.history[].reason`, and the reason of `Failed` where no other attempt follows. "Uses": what of
`spec.runPolicy` another attempt costs.

| Reason | Exit code | Uses | What it means | What to do |
|---|---|---|---|---|
"""
_VERDICTS = """
## Why no other attempt follows

The reason of the condition `Failed`, where the last attempt's own doesn't say it.

| Reason | What it means | What to do |
|---|---|---|
"""
_OBSTACLES = """
## What keeps an attempt from starting

The reason of the condition `Stalled`. Once that is fixed, the job goes on by itself.

| Reason | What it means | What to do |
|---|---|---|
"""


def page() -> str:
    return "".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEADER
    for reason in Reason:
        meaning, remedy = EXPLANATIONS[reason]
        yield f"| `{reason}` | {int(exit_code(reason))} | {_uses(reason)} | {meaning} | {remedy} |\n"
    for header, names in ((_VERDICTS, Verdict), (_OBSTACLES, Obstacle)):
        yield header
        for name in names:
            meaning, remedy = EXPLANATIONS[name]
            yield f"| `{name}` | {meaning} | {remedy} |\n"


def _uses(reason: Reason) -> str:
    if reason in (Reason.SUCCEEDED, Reason.PREPARED):
        return ""
    if reason in NEVER_RETRIED:
        return "no other follows"
    return "`disruptionRetries`" if reason in DISRUPTIONS else "`retries`"


if __name__ == "__main__":
    print(page(), end="")
