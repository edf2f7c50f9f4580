"""The PyTorchJob of an attempt, whole, against a literal."""

import json
from typing import Any

from sft_operator.kubernetes.mounts import path_of
from sft_operator.kubernetes.pytorch_job import TrainerDefaults, is_ours, pytorch_job
from sft_operator.lifecycle.plan import launch_plan
from sftjob.job import ObjectMeta, SFTJob
from sftjob.plan import LaunchPlan
from sftjob.spec import SFTJobSpec
from sftjob.status import AttemptKind, AttemptsStatus, SFTJobStatus


def a_job(**sections: Any) -> SFTJob:
    spec = {
        "model": {"loadFrom": {"uri": "pvc://models/base"}},
        "data": {
            "datasets": [
                {"name": "chats", "uri": "pvc://data/chats.jsonl"},
                {"name": "few", "uri": "configMap://few-chats/few.jsonl"},
            ]
        },
        "output": [{"uri": "pvc://results/tuned"}],
    }
    metadata = ObjectMeta(name="tiny", namespace="team", uid="uid-1", resource_version="1")
    return SFTJob(metadata=metadata, spec=SFTJobSpec.model_validate(spec | sections))


DEFAULTS = TrainerDefaults(image="trainer:1", service_account="trainers", image_pull_secrets=("mirror",))


def built(job: SFTJob, attempt: int = 2) -> tuple[LaunchPlan, dict[str, Any]]:
    plan = launch_plan(job, attempt, path_of=path_of)
    return plan, pytorch_job(job, plan, DEFAULTS)


def test_an_attempt_of_a_queue_is_made_suspended_for_the_queue_to_let_it_run() -> None:
    _, body = built(a_job(queue={"name": "team-a"}))
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert body["spec"]["runPolicy"] == {"cleanPodPolicy": "Running", "suspend": True}
    worker = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    # The queue is the PyTorchJob's: pods with its label would be taken for jobs of their own.
    assert "kueue.x-k8s.io/queue-name" not in worker["metadata"]["labels"]


def test_an_attempt_is_one_worker_only_pytorchjob_that_is_never_retried_by_its_controller() -> None:
    plan, body = built(a_job(compute={"nodes": 2, "processesPerNode": 8}))
    labels = {"sftjob.dev/job-name": "tiny", "sftjob.dev/job-uid": "uid-1", "sftjob.dev/attempt": "2"}
    worker = body["spec"]["pytorchReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert json.loads(container["command"].pop()) == plan.to_json_dict()
    assert body == {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": "tiny-4a49acf8-a2",
            "namespace": "team",
            "labels": labels,
            "ownerReferences": [
                {
                    "apiVersion": "sftjob.dev/v1alpha1",
                    "kind": "SFTJob",
                    "name": "tiny",
                    "uid": "uid-1",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "nprocPerNode": "8",
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": 2,
                    "restartPolicy": "Never",
                    "template": {
                        "metadata": {
                            "labels": labels | {"sidecar.istio.io/inject": "false"},
                            "annotations": {"sidecar.istio.io/inject": "false"},
                        },
                        "spec": pod,
                    },
                }
            },
        },
    }
    assert pod == {
        "serviceAccountName": "trainers",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 120,
        "imagePullSecrets": [{"name": "mirror"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "pytorch",
                "image": "trainer:1",
                "command": ["python", "-m", "sft_trainer.launcher", "--plan"],
                "env": [
                    {"name": "SFTJOB_MASTER_ADDRESS", "value": "tiny-4a49acf8-a2-worker-0"},
                    {"name": "SFTJOB_MASTER_PORT", "value": "23456"},
                    {"name": "SFTJOB_SCRATCH", "value": "/tmp"},
                    {"name": "SFTJOB_TERMINATION_MESSAGE", "value": "/dev/termination-log"},
                    {"name": "SFTJOB_SERVE_ADDRESS", "value": ":8080"},
                    {
                        "name": "SFTJOB_NODE_RANK",
                        "valueFrom": {
                            "fieldRef": {"fieldPath": "metadata.labels['training.kubeflow.org/replica-index']"}
                        },
                    },
                    {"name": "SFTJOB_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                ],
                "ports": [{"name": "progress", "containerPort": 8080}],
                "resources": {},
                "volumeMounts": [
                    {"name": "claim-0", "mountPath": "/claims/data", "readOnly": True},
                    {"name": "claim-1", "mountPath": "/claims/results"},
                    {"name": "claim-2", "mountPath": "/claims/models", "readOnly": True},
                    {"name": "config-map-0", "mountPath": "/config-maps/few-chats", "readOnly": True},
                    {"name": "scratch", "mountPath": "/tmp"},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                ],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
        "volumes": [
            {"name": "claim-0", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "claim-1", "persistentVolumeClaim": {"claimName": "results"}},
            {"name": "claim-2", "persistentVolumeClaim": {"claimName": "models"}},
            {
                "name": "config-map-0",
                "configMap": {"name": "few-chats", "items": [{"key": "few.jsonl", "path": "few.jsonl"}]},
            },
            {"name": "scratch", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def test_the_plan_tells_where_each_place_lies_in_the_pod() -> None:
    plan, _ = built(a_job())
    assert {mount.uri: mount.path for mount in plan.mounts} == {
        "pvc://models/base": "/claims/models/base",
        "pvc://data/chats.jsonl": "/claims/data/chats.jsonl",
        "configMap://few-chats/few.jsonl": "/config-maps/few-chats/few.jsonl",
        "pvc://results/tuned": "/claims/results/tuned",
        "pvc://results/tuned.checkpoints": "/claims/results/tuned.checkpoints",
    }


def test_what_comes_from_a_hub_needs_no_volume() -> None:
    plan, body = built(
        a_job(
            model={"loadFrom": {"uri": "hf://tiny/llama", "revision": "v1"}},
            data={"datasets": [{"name": "chats", "uri": "hf://datasets/tiny/chats/train.jsonl"}]},
        )
    )
    pod = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["claim-0", "scratch", "shared-memory"]
    assert {mount.uri for mount in plan.mounts} == {"pvc://results/tuned", "pvc://results/tuned.checkpoints"}


def test_what_goes_into_a_bucket_is_written_into_the_pod_s_scratch_first() -> None:
    key = {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "store", "key": "secret"}}}
    plan, body = built(
        a_job(
            model={"loadFrom": {"uri": "s3://bucket/llama"}},
            data={"datasets": [{"name": "chats", "uri": "s3://bucket/chats.jsonl"}]},
            output=[{"uri": "s3://bucket/tuned"}],
            compute={"env": [key]},
        )
    )
    pod = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["scratch", "shared-memory"]
    assert pod["containers"][0]["env"][0] == key
    assert {mount.uri: mount.path for mount in plan.mounts} == {
        "s3://bucket/tuned": "/tmp/s3/bucket/tuned",
        "s3://bucket/tuned.checkpoints": "/tmp/s3/bucket/tuned.checkpoints",
    }


def test_a_script_and_its_places_are_mounted_read_only_and_named_as_paths() -> None:
    arguments = ["--data", "pvc://data/chats.jsonl", "--few", "configMap://few-chats/few.jsonl", "--cost", "$(5)"]
    spec = {
        "script": {"uri": "configMap://scripts/train.py", "args": arguments},
        "checkpoint": {"storage": "pvc://results/tuned.checkpoints"},
    }
    metadata = ObjectMeta(name="tiny", namespace="team", uid="uid-1", resource_version="1")
    plan, body = built(SFTJob(metadata=metadata, spec=SFTJobSpec.model_validate(spec)))
    assert {mount.uri: mount.path for mount in plan.mounts} == {
        "configMap://scripts/train.py": "/config-maps/scripts/train.py",
        "pvc://data/chats.jsonl": "/claims/data/chats.jsonl",
        "configMap://few-chats/few.jsonl": "/config-maps/few-chats/few.jsonl",
        "pvc://results/tuned.checkpoints": "/claims/results/tuned.checkpoints",
    }
    pod = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["volumeMounts"][:4] == [
        {"name": "claim-0", "mountPath": "/claims/data", "readOnly": True},
        {"name": "claim-1", "mountPath": "/claims/results"},
        {"name": "config-map-0", "mountPath": "/config-maps/scripts", "readOnly": True},
        {"name": "config-map-1", "mountPath": "/config-maps/few-chats", "readOnly": True},
    ]
    assert pod["volumes"][2] == {
        "name": "config-map-0",
        "configMap": {"name": "scripts", "items": [{"key": "train.py", "path": "train.py"}]},
    }
    # The kubelet would put a variable in for $(5).
    assert json.loads(container["command"][-1].replace("$$", "$"))["spec"]["script"]["args"] == arguments
    assert "$$(5)" in container["command"][-1]


def test_what_a_job_asks_of_its_pods_stands_in_them() -> None:
    compute = {
        "image": "mine:2",
        "imagePullSecrets": [{"name": "mirror"}, {"name": "own"}],
        "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"nvidia.com/gpu": "1"}},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "batch",
        "env": [
            {"name": "NCCL_DEBUG", "value": "cost: $(5)"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        ],
    }
    _, body = built(a_job(compute=compute))
    pod = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "mine:2"
    assert pod["imagePullSecrets"] == [{"name": "mirror"}, {"name": "own"}]
    assert container["resources"] == {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"nvidia.com/gpu": "1"}}
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["priorityClassName"] == "batch"
    # The kubelet would put a variable in for $(5).
    assert container["env"][:2] == [
        {"name": "NCCL_DEBUG", "value": "cost: $$(5)"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
    ]
    assert "$$(5)" in container["command"][-1]


def test_a_pre_flight_is_one_worker_of_the_same_pod_without_accelerators() -> None:
    compute = {
        "nodes": 2,
        "processesPerNode": 4,
        "resources": {
            "requests": {"cpu": 96, "nvidia.com/gpu": 4},
            "limits": {"cpu": 128, "memory": "8Gi", "nvidia.com/gpu": 4, "rdma/hca": 1},
        },
    }
    job = a_job(compute=compute, queue={"name": "team-a"})
    status = SFTJobStatus(attempts=AttemptsStatus(current=1, kind=AttemptKind.PREFLIGHT))
    _, body = built(job.model_copy(update={"status": status}), attempt=1)
    _, training = built(job, attempt=1)
    pod, other = (made["spec"]["pytorchReplicaSpecs"]["Worker"] for made in (body, training))
    assert (pod["replicas"], body["spec"]["nprocPerNode"]) == (1, "1")
    (container,), (of_training,) = (one["template"]["spec"].pop("containers") for one in (pod, other))
    # No more is requested than preparing needs, so that no whole node is waited for.
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "8Gi"},
        "limits": {"cpu": "128", "memory": "8Gi"},
    }
    assert {"name": "SFTJOB_MASTER_ADDRESS", "value": "localhost"} in container["env"]
    told = json.loads(container["command"][-1])
    assert (told["prepareOnly"], told["spec"]["compute"]["nodes"]) == (True, 2)
    # Where a cluster taints nodes with devices, the pods of training get these by what they request.
    assert pod["template"]["spec"].pop("tolerations") == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "rdma/hca", "operator": "Exists", "effect": "NoSchedule"},
    ]
    # All else is as in training: the volumes above all.
    assert pod["template"] == other["template"]
    assert container["volumeMounts"] == of_training["volumeMounts"]
    # A queue holds it back like any workload, by what it asks for.
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert body["spec"]["runPolicy"]["suspend"] is True


def test_a_pre_flight_bears_a_taint_that_the_job_itself_bears_once() -> None:
    of_gpus = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    spot = {"key": "spot", "operator": "Equal", "value": "yes"}
    compute = {"resources": {"limits": {"nvidia.com/gpu": 1}}, "tolerations": [spot, of_gpus]}
    status = SFTJobStatus(attempts=AttemptsStatus(current=1, kind=AttemptKind.PREFLIGHT))
    _, body = built(a_job(compute=compute).model_copy(update={"status": status}), attempt=1)
    assert body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["tolerations"] == [spot, of_gpus]


def test_an_attempt_stays_away_from_nodes_whose_gpu_is_broken() -> None:
    """One name a requirement: the API server refuses two, and all of a term must hold."""
    status = SFTJobStatus(attempts=AttemptsStatus(avoided_nodes=["node-3", "node-7"]))
    _, body = built(a_job().model_copy(update={"status": status}))
    away = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("node-3", "node-7")]
    assert body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["affinity"] == {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": away}]}
        }
    }


def test_one_node_needs_no_name_of_a_master() -> None:
    _, body = built(a_job())
    (container,) = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert {"name": "SFTJOB_MASTER_ADDRESS", "value": "localhost"} in container["env"]


def test_a_pytorchjob_is_ours_by_owner_and_not_by_name() -> None:
    _, body = built(a_job())
    assert is_ours(body, uid="uid-1")
    assert not is_ours(body, uid="uid-2")
    assert not is_ours(body | {"metadata": body["metadata"] | {"ownerReferences": []}}, uid="uid-1")
