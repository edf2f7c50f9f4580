"""Every name, label, key and path that two parts of sftjob must agree on, each computed here and nowhere else."""

import hashlib
import re
from pathlib import Path

GROUP = "sftjob.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "SFTJob"
PLURAL = "sftjobs"

# Placement: the only things a launcher takes from its environment.
NODE_RANK_VARIABLE = "SFTJOB_NODE_RANK"
MASTER_ADDRESS_VARIABLE = "SFTJOB_MASTER_ADDRESS"
MASTER_PORT_VARIABLE = "SFTJOB_MASTER_PORT"
SCRATCH_VARIABLE = "SFTJOB_SCRATCH"
TERMINATION_MESSAGE_VARIABLE = "SFTJOB_TERMINATION_MESSAGE"
SERVE_ADDRESS_VARIABLE = "SFTJOB_SERVE_ADDRESS"
POD_UID_VARIABLE = "SFTJOB_POD_UID"

# Of the ranks of a user's own script: what our Trainer in it, or the script itself, may look for.
LAUNCH_VARIABLE = "SFTJOB_LAUNCH"
"""The launcher's folder, with the plan and room for reports."""
OUTPUT_VARIABLE = "SFTJOB_OUTPUT"
"""A folder to write a model into: it becomes the job's first output."""

RESERVED_VARIABLES = ("SFTJOB_", "PET_")
"""Beginnings of names that jobs must not set: ours, and those with which torchrun is told its options."""

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_OIDC_ID_TOKEN",
    "WANDB_API_KEY",
)
"""What opens buckets, hubs and trackers, as obstore, boto3, huggingface_hub and wandb read it: jobs name them, Secrets
hold them."""

# On a job's PyTorchJobs and pods.
JOB_LABEL = f"{GROUP}/job-name"
JOB_UID_LABEL = f"{GROUP}/job-uid"
ATTEMPT_LABEL = f"{GROUP}/attempt"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Kueue's own, on a PyTorchJob: whose queue lets it run."""
TRIED_AGAIN_ANNOTATION = f"{GROUP}/tried-again"
"""When its controller was last asked to create pods that had been refused."""
RETRY_ANNOTATION = f"{GROUP}/retry"
"""On a job that has failed: any new value lets it go on."""

# In a pod.
SERVE_PORT = 8080
CLAIMS_FOLDER = "/claims"
POD_SCRATCH = "/tmp"
CONFIG_MAPS_FOLDER = "/config-maps"

HUB = "hf://"
"""Beginning of URIs of a Hugging Face hub's repositories."""
S3 = "s3://"
"""Beginning of URIs of what lies in a bucket, in an object store that speaks S3."""
S3_FOLDER = "s3"
"""Where a node keeps its own copy of what the job writes into buckets: `s3/<bucket>/<path>` of its scratch."""

PROGRESS = "progress.json"
SAMPLES = "samples.json"
"""Beside it, once data is prepared: what `sft run` shows of the first samples."""
RUN_RECORD = "run.json"
ATTEMPTS = "attempts"
CACHE = "cache"
DOWNLOADS = "hub"
MANIFEST = "manifest.json"
LATEST = "latest"
EXPORT_MANIFEST = "sftjob-manifest.json"
EXPORT_OWNER = "sftjob-owner.json"
"""Of an output in a bucket that is being uploaded; gone when its manifest is there."""
METRICS = "metrics.jsonl"
SHORTAGE = "out-of-memory"
TENSORBOARD = "tensorboard"
TRACKIO = "trackio"

_STEP = re.compile(r"step-(0|[1-9][0-9]*)")
_LEDGER = re.compile(r"ledger-(\d+)\.jsonl")
_TEMPORARY = re.compile(r"(?:step-\d+|hf|adapter)(?:\.tmp-a\d+)*\.tmp-a(\d+)")


def attempt_name(job_name: str, uid: str, attempt: int) -> str:
    """`<slug>-<hash8(uid)>-a<N>`: a DNS-1035 label of at most 40 characters, as the services derived from it need."""
    slug = re.sub(r"[^a-z0-9-]", "-", job_name.lower())[:24].strip("-")
    if not slug[:1].isalpha():
        slug = f"j{slug[:23]}"
    return f"{slug}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}-a{attempt}"


def checkpoint_folder(step: int) -> str:
    return f"step-{step}"


def checkpoint_step(folder: str) -> int | None:
    """The step of a published checkpoint's folder name; None for any other name."""
    match = _STEP.fullmatch(folder)
    return int(match[1]) if match else None


def temporary(folder: str, *, attempt: int) -> str:
    """What a folder is called until it is published: `<folder>.tmp-a<N>`."""
    return f"{folder}.tmp-a{attempt}"


def temporary_attempt(folder: str) -> int | None:
    """The attempt that was writing this folder of a storage, a checkpoint or a Trainer's own export, or deleting it.

    None for any other name.
    """
    match = _TEMPORARY.fullmatch(folder)
    return int(match[1]) if match else None


def corrupt(folder: str, *, attempt: int) -> str:
    """Where attempt N moves a checkpoint that does not verify, so that its step can be published again."""
    return f"{folder}.corrupt-a{attempt}"


def attempt_folder(storage: Path, attempt: int) -> Path:
    return storage / ATTEMPTS / str(attempt)


def node_claim(storage: Path, attempt: int, node_rank: int) -> Path:
    """The file whose exclusive creation lets a launcher run: the fence."""
    return attempt_folder(storage, attempt) / f"node-{node_rank}.json"


def shortage(storage: Path, attempt: int) -> Path:
    """Says that memory ran out in this attempt, where no operator counts such ends."""
    return attempt_folder(storage, attempt) / SHORTAGE


def chosen_checkpoint(storage: Path, attempt: int) -> Path:
    """Of a storage in a bucket: which checkpoint node 0 has found, for the other nodes."""
    return attempt_folder(storage, attempt) / "resumes-from.json"


def stacks(storage: Path, attempt: int, node_rank: int) -> Path:
    """Where the ranks of this node stood when none of them went on."""
    return attempt_folder(storage, attempt) / f"stacks-node-{node_rank}.txt"


def metrics(storage: Path, attempt: int) -> Path:
    return attempt_folder(storage, attempt) / METRICS


def event_suffix(attempt: int) -> str:
    """How the file of TensorBoard's events that an attempt writes ends."""
    return f".a{attempt}"


def ledger(storage: Path, attempt: int, rank: int) -> Path:
    """What this rank has fed to the model in this attempt."""
    return attempt_folder(storage, attempt) / f"ledger-{rank}.jsonl"


def ledger_rank(file: str) -> int | None:
    """The rank whose ledger a file of an attempt's folder is, by its name; None for any other file."""
    match = _LEDGER.fullmatch(file)
    return int(match[1]) if match else None


def compiled_layers(storage: Path) -> Path:
    """What `torch.compile` has made, for all attempts."""
    return storage / CACHE / "compiled"


def default_storage(output_uri: str) -> str:
    """Where checkpoints go when `spec.checkpoint.storage` is absent."""
    return output_uri.rstrip("/") + ".checkpoints"
