"""Pods on the real cluster: names, storage, the ways in, a PyTorchJob of two nodes, the trainer's image."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from real_cluster import PATIENCE_SECONDS, Cluster, claim, needs_root_on_linux, pod, run_tool

from cluster.parts import parts, pid_of
from cluster.place import cache_folder, cluster_folder
from sftjob.plan import JobReference, LaunchPlan, Mount
from sftjob.spec import SFTJobSpec

# What an SFTJob needs of it, the tests of SFTJobs hold in each run.
pytestmark = [pytest.mark.cluster, pytest.mark.full]

ALL_REDUCE = """
import os, socket, time, torch, torch.distributed as dist
master = os.environ["MASTER"]
for _ in range(600):
    try:
        socket.gethostbyname(master)
        break
    except OSError:
        time.sleep(0.5)
dist.init_process_group("gloo", init_method=f"tcp://{master}:23456", rank=int(os.environ["NODE_RANK"]), world_size=2)
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
assert total.item() == 3, total
print("sum over ranks:", total.item())
"""


def test_a_pytorchjob_of_two_nodes_adds_over_its_ranks_and_succeeds(cluster: Cluster) -> None:
    template = pod("unused", ["python", "-c", ALL_REDUCE])["spec"]
    del template["restartPolicy"]
    template["containers"][0]["name"] = "pytorch"
    label = "metadata.labels['training.kubeflow.org/replica-index']"
    template["containers"][0]["env"] = [
        {"name": "MASTER", "value": "sum-worker-0"},
        {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": label}}},
    ]
    selector = {"matchLabels": {"training.kubeflow.org/job-name": "sum"}}
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
    template["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    worker = {"replicas": 2, "restartPolicy": "Never", "template": {"spec": template}}
    cluster.apply(
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": "sum"},
            "spec": {
                "nprocPerNode": "1",
                "runPolicy": {"cleanPodPolicy": "None"},
                "pytorchReplicaSpecs": {"Worker": worker},
            },
        }
    )
    cluster.kubectl("wait", "--for=condition=Succeeded", "pytorchjob/sum", f"--timeout={PATIENCE_SECONDS}s")
    nodes = {cluster.get("pod", f"sum-worker-{rank}")["spec"]["nodeName"] for rank in (0, 1)}
    assert nodes == set(cluster.nodes)
    for rank in (0, 1):
        assert cluster.kubectl("logs", f"sum-worker-{rank}").endswith("sum over ranks: 3.0\n")
    cluster.kubectl("delete", "pytorchjob", "sum")


def test_what_a_pod_writes_into_a_claim_a_pod_on_the_other_node_reads(cluster: Cluster) -> None:
    write = ["sh", "-c", "echo from $(hostname) > /c/word && stat --format %U:%g:%a /c"]
    read = ["cat", "/c/word"]
    mount = {"shared": "/c"}
    cluster.apply(
        claim("shared", modes=("ReadWriteMany",)),
        pod("stranger", write, claims=mount, node=cluster.nodes[0]),
    )
    # Folders are root's, as on real storage: without fsGroup a pod that isn't root must not get through.
    assert cluster.phase_of("stranger") == "Failed"
    assert "Permission denied" in cluster.kubectl("logs", "stranger")

    cluster.apply(pod("writer", write, claims=mount, node=cluster.nodes[0], fs_group=1000))
    assert cluster.phase_of("writer") == "Succeeded", cluster.kubectl("logs", "writer")
    assert cluster.kubectl("logs", "writer") == "root:1000:2775\n"
    cluster.apply(pod("reader", read, claims=mount, node=cluster.nodes[1], fs_group=1000))
    assert cluster.phase_of("reader") == "Succeeded"
    assert cluster.kubectl("logs", "reader") == "from writer\n"

    volume = cluster.get("pvc", "shared")["spec"]["volumeName"]
    folder = Path(cluster.get("pv", volume)["spec"]["local"]["path"])
    assert (folder / "word").read_text() == "from writer\n"
    cluster.kubectl("delete", "pod/stranger", "pod/writer", "pod/reader", "pvc/shared")
    cluster.kubectl("wait", "--for=delete", f"pv/{volume}", f"--timeout={PATIENCE_SECONDS}s")
    assert not folder.exists()


SERVE = """
import http.server, socket
print(socket.gethostbyname("kubernetes.default.svc.cluster.local"), flush=True)
http.server.HTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_names_logs_exec_and_port_forward_work_on_both_nodes(cluster: Cluster) -> None:
    cluster.apply(
        *(pod(f"server-{number}", ["python", "-c", SERVE], node=cluster.nodes[number - 1]) for number in (1, 2))
    )
    for number in (1, 2):
        name = f"server-{number}"
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={PATIENCE_SECONDS}s")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (log := cluster.kubectl("logs", name)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert log == "10.96.0.1\n"
        assert cluster.kubectl("exec", name, "--", "id", "-u") == "1000\n"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [cluster.folder / "bin" / "kubectl", f"--kubeconfig={cluster.folder / 'kubeconfig'}", "port-forward"]
        with subprocess.Popen([*command, name, f"{port}:8000"], stdout=subprocess.PIPE, text=True) as forward:
            assert forward.stdout is not None
            assert forward.stdout.readline().startswith(f"Forwarding from 127.0.0.1:{port}")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE_SECONDS) as answer:
                assert answer.status == 200
            forward.terminate()
    # A pod speaks to one on the other node, and this machine to both.
    other = cluster.get("pod", "server-2")["status"]["podIP"]
    ask = f"import urllib.request; print(urllib.request.urlopen('http://{other}:8000').status)"
    assert cluster.kubectl("exec", "server-1", "--", "python", "-c", ask) == "200\n"
    with urllib.request.urlopen(f"http://{other}:8000", timeout=PATIENCE_SECONDS) as answer:
        assert answer.status == 200
    cluster.kubectl("delete", "pod", "server-1", "server-2")


def test_the_trainers_image_trains_a_pretrained_model_for_two_steps(cluster: Cluster, smollm2: Path) -> None:
    """As the operator will run it: the launcher is process 1, its plan an argument."""
    mounts = {"models": "/claims/models", "results": "/claims/results"}
    cluster.apply(*(claim(name) for name in mounts))
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/models", f"--timeout={PATIENCE_SECONDS}s")
    volume = cluster.get("pvc", "models")["spec"]["volumeName"]
    folder = Path(cluster.get("pv", volume)["spec"]["local"]["path"])
    shutil.copytree(smollm2, folder / "model")
    chats = [
        {"messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(40)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    spec = SFTJobSpec.model_validate(
        {
            "model": {"loadFrom": {"uri": "pvc://models/model"}},
            "data": {
                "datasets": [{"name": "sums", "uri": "pvc://models/chats.jsonl"}],
                "packing": {"level": "soft", "maxLength": 128},
            },
            "training": {"totalStep": 2, "globalBatchSize": 1},
            "checkpoint": {"storage": "pvc://results/checkpoints"},
            "output": [{"uri": "pvc://results/model"}],
        }
    )
    uris = ["pvc://models/model", "pvc://models/chats.jsonl", "pvc://results/checkpoints", "pvc://results/model"]
    plan = LaunchPlan(
        job=JobReference(namespace="default", name="two-steps", uid="0f5e"),
        attempt=1,
        spec=spec,
        mounts=[Mount(uri=uri, path=uri.replace("pvc://", "/claims/")) for uri in uris],
    )
    command = ["python", "-m", "sft_trainer.launcher", "--plan", plan.to_json()]
    environment = {
        "SFTJOB_NODE_RANK": "0",
        "SFTJOB_MASTER_ADDRESS": "localhost",
        "SFTJOB_MASTER_PORT": "29500",
        "SFTJOB_SCRATCH": "/tmp",
        "SFTJOB_TERMINATION_MESSAGE": "/dev/termination-log",
        "SFTJOB_SERVE_ADDRESS": ":8080",
    }
    two_steps = pod("two-steps", command, claims=mounts, fs_group=1000)
    two_steps["spec"]["containers"][0]["env"] = [{"name": key, "value": value} for key, value in environment.items()]
    cluster.apply(two_steps)
    assert cluster.phase_of("two-steps") == "Succeeded", cluster.kubectl("logs", "two-steps")
    (ended,) = cluster.get("pod", "two-steps")["status"]["containerStatuses"]
    outcome = json.loads(ended["state"]["terminated"]["message"])
    assert outcome["exitCode"] == 0
    results = Path(cluster.get("pv", cluster.get("pvc", "results")["spec"]["volumeName"])["spec"]["local"]["path"])
    assert (results / "model" / "model.safetensors").stat().st_size > 200e6
    assert [path.name for path in (results / "checkpoints").glob("step-*")] == ["step-2"]
    cluster.kubectl("delete", "pod/two-steps", "pvc/models", "pvc/results")


@needs_root_on_linux
def test_a_lost_node_is_named_leaves_the_other_alone_and_comes_back(cluster: Cluster) -> None:
    cluster.apply(*(pod(f"sleeper-{n}", ["sleep", "infinity"], node=cluster.nodes[n - 1]) for n in (1, 2)))
    for number in (1, 2):
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/sleeper-{number}", f"--timeout={PATIENCE_SECONDS}s")
    every = {part.name: part for part in parts(cluster_folder(cache_folder()), cache_folder(), nodes=2)}
    pid = pid_of(every["node-2"])
    subprocess.run(["kill", "-9", str(pid)], check=True)
    status = run_tool("status")
    assert status.returncode == 1
    assert [line.split(":")[0].strip() for line in status.stdout.splitlines() if ": ended" in line] == [
        "node-2",
        "containerd-2",
        "kubelet-2",
        "kube-proxy-2",
    ]
    assert cluster.kubectl("exec", "sleeper-1", "--", "echo", "here") == "here\n"

    mended = run_tool("up")
    assert mended.returncode == 0, mended.stdout
    assert run_tool("status").returncode == 0
    cluster.apply(pod("newcomer", ["echo", "here"], node=cluster.nodes[1]))
    assert cluster.phase_of("newcomer") == "Succeeded"
    cluster.kubectl("delete", "pod", "sleeper-1", "sleeper-2", "newcomer", "--force", "--grace-period=0")
