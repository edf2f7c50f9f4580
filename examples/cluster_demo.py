"""What `make cluster-demo` shows, `python -m examples.cluster_demo`: the quickstart on a real Kubernetes.

A cluster on this machine, the operator by its chart, model and data copied onto claims, then `kubectl apply`. It prints
each command before it runs it, and uses nothing that a user couldn't. The loss curve lies in `runs/cluster-demo`.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from cluster import images
from cluster.place import cache_folder, cluster_folder, kubeconfig_path, read_record
from examples import smollm2, tickets
from examples.demo import Narrator
from examples.smollm2 import ROOT
from sft_cli.display import Display
from sft_cli.metrics import read_metrics
from sft_cli.plot import plot_loss
from sft_cli.sentences import trained_time
from sftjob.base import utc_now
from sftjob.job import SFTJob
from sftjob.status import Phase

NAMESPACE = "sft-demo"
SYSTEM = "sft-system"
JOB = "quickstart"
RUN = ROOT / "runs" / "cluster-demo"
POLL_SECONDS = 1

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"

# A fresh claim is root's: fsGroup lets user 1000 write, here as in the trainer's pods.
POD = f"""\
apiVersion: v1
kind: Pod
metadata: {{name: claims}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    fsGroup: 1000
    seccompProfile: {{type: RuntimeDefault}}
  containers:
    - name: shell
      image: {images.TRAINER.in_pods}
      command: [sleep, infinity]
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
      volumeMounts:
        - {{name: models, mountPath: /claims/models}}
        - {{name: data, mountPath: /claims/data}}
        - {{name: results, mountPath: /claims/results}}
  volumes:
    - {{name: models, persistentVolumeClaim: {{claimName: models}}}}
    - {{name: data, persistentVolumeClaim: {{claimName: data}}}}
    - {{name: results, persistentVolumeClaim: {{claimName: results}}}}
"""


class Shell:
    """Commands with the cluster's kubectl and helm, each shown before it runs."""

    def __init__(self, folder: Path) -> None:
        self.exports = f"export KUBECONFIG={kubeconfig_path(folder)} PATH={folder / 'bin'}:$PATH"
        self._environment = os.environ | {
            "KUBECONFIG": str(kubeconfig_path(folder)),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }
        self._console = Console(soft_wrap=True, highlight=False, markup=False)

    def run(self, command: str, *, stdin: str | None = None) -> None:
        """Raises subprocess.CalledProcessError; the command has said why by then."""
        self._show(command if stdin is None else f"{command} <<'END'\n{stdin}END")
        subprocess.run(self._bash(command), input=stdin, text=True, cwd=ROOT, env=self._environment, check=True)

    def read(self, command: str) -> str:
        """What it prints; such a command only looks, and isn't shown."""
        done = subprocess.run(
            self._bash(command), stdout=subprocess.PIPE, text=True, cwd=ROOT, env=self._environment, check=True
        )
        return done.stdout

    def say(self, name: str, text: str) -> None:
        self._console.print(f"{name:14}{text}")

    def _show(self, command: str) -> None:
        self._console.print(f"$ {command}", style="cyan")

    def _bash(self, command: str) -> list[str]:
        return ["bash", "-o", "pipefail", "-c", command]


def main() -> int:
    narrator = Narrator()
    folder = cluster_folder(cache_folder())
    shell = Shell(folder)
    python = shlex.quote(_short(Path(sys.executable)))

    narrator.stage("1 of 6  A cluster and the images")
    record = read_record(folder)
    if record and record.ready:
        shell.say("cluster:", f"{record.name} is up already")
    else:
        shell.run(f"{python} -m cluster up")
    shell.run(f"{python} -m cluster images")
    shell.say("for a shell:", shell.exports)

    narrator.stage(f"2 of 6  A namespace with three claims; Pod Security `restricted` holds in it: {NAMESPACE}")
    if shell.read(f"kubectl get namespace {NAMESPACE} --ignore-not-found"):
        shell.say(f"{NAMESPACE}:", "is there from an earlier run, and goes first, with all that is in it")
        shell.run(f"kubectl delete namespace {NAMESPACE}")
    _make_namespace(shell, NAMESPACE)
    shell.run(f"kubectl apply -n {NAMESPACE} -f examples/claims.yaml")

    narrator.stage(f"3 of 6  The operator, by its chart; its rights end at {NAMESPACE}")
    _install_operator(shell)

    narrator.stage("4 of 6  SmolLM2-135M-Instruct and 90 support tickets onto the claims")
    _fill_claims(shell)

    narrator.stage("5 of 6  The job")
    shell.run(f"kubectl apply -n {NAMESPACE} -f examples/{JOB}.yaml")
    shell.say("Ctrl-C:", "ends only this view; the job goes on")
    job = _follow(shell)

    narrator.stage("6 of 6  What has become of it")
    shell.run(f"kubectl get sft -n {NAMESPACE}")
    if job.status.phase is not Phase.SUCCEEDED:
        shell.run(f"kubectl describe sft {JOB} -n {NAMESPACE}")
        return 1
    _fetch_metrics(shell)
    narrator.stage(f"Done: trained {trained_time(job.status)}")
    _tell_results(shell, job)
    return 0


def _make_namespace(shell: Shell, name: str) -> None:
    shell.run(f"kubectl create namespace {name}")
    shell.run(f"kubectl label namespace {name} {RESTRICTED}")


def _install_operator(shell: Shell) -> None:
    if not shell.read(f"kubectl get namespace {SYSTEM} --ignore-not-found"):
        _make_namespace(shell, SYSTEM)
    # helm itself never changes a definition that is there.
    shell.run("kubectl apply --server-side --force-conflicts -f charts/sft-operator/crds")
    values = (
        f"--set image={images.OPERATOR.in_pods}",
        f"--set trainer.image={images.TRAINER.in_pods}",
        f"--set 'watchNamespaces={{{NAMESPACE}}}'",
        # Another value each time: the tag stays the same, and an operator that runs would go on with its old image.
        f"--set-string podAnnotations.demo-started={time.time():.0f}",
    )
    shell.run(
        f"helm upgrade --install sft-operator charts/sft-operator --namespace {SYSTEM} --wait --timeout 3m \\\n  "
        + " \\\n  ".join(values)
    )


def _fill_claims(shell: Shell) -> None:
    model = smollm2.prepare()
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)
    file = tickets.write(RUN / "tickets.jsonl")
    shell.run(f"kubectl apply -n {NAMESPACE} -f -", stdin=POD)
    shell.run(f"kubectl wait -n {NAMESPACE} --for=condition=Ready pod/claims --timeout=5m")
    for path, claim in ((model, "models"), (file, "data")):
        pack = f"tar c -C {shlex.quote(_short(path.parent))} {path.name}"
        shell.run(f"{pack} | kubectl exec -i -n {NAMESPACE} claims -- tar x -C /claims/{claim}")


def _follow(shell: Shell) -> SFTJob:
    """The job at its end, shown all the way as `sft run` shows one of this machine."""
    told = ""
    job = _read_job(shell)
    with Display(Console(), known=job.status) as display:
        while not job.status.phase.is_final:
            display.show(job, job.status.progress, now=utc_now())
            stalled = [c.message for c in job.status.conditions if c.type == "Stalled" and c.status == "True"]
            if stalled and stalled[0] != told:
                told = stalled[0]
                display.say(told)
            time.sleep(POLL_SECONDS)
            job = _read_job(shell)
        display.show(job, job.status.progress, now=utc_now())
    return job


def _read_job(shell: Shell) -> SFTJob:
    found = json.loads(shell.read(f"kubectl get sft {JOB} -n {NAMESPACE} -o json"))
    return SFTJob.model_validate(found, extra="ignore")


def _fetch_metrics(shell: Shell) -> None:
    pack = f"kubectl exec -n {NAMESPACE} claims -- tar c -C /claims/results checkpoints/attempts"
    shell.run(f"{pack} | tar x -C {_short(RUN)}")
    plot_loss(read_metrics(RUN / "checkpoints"), RUN / "loss.png", title=JOB)


def _tell_results(shell: Shell, job: SFTJob) -> None:
    for artifact in job.status.artifacts:
        shell.say("artifact:", f"{artifact.uri}, {artifact.bytes / 1e6:.0f} MB, {artifact.digest}")
    shell.say("loss curve:", _short(RUN / "loss.png"))
    shell.say("first:", shell.exports)
    shell.say("look further:", f"kubectl describe sft {JOB} -n {NAMESPACE}")
    shell.say("", f"kubectl exec -n {NAMESPACE} claims -- ls -lR /claims/results/model")
    shell.say("", "kubectl explain sftjob.spec.training")
    shell.say("clean up:", f"kubectl delete namespace {NAMESPACE}")
    shell.say("", f"helm uninstall sft-operator -n {SYSTEM}; kubectl delete namespace {SYSTEM}")
    shell.say("or all of it:", "make cluster-down")


def _short(path: Path) -> str:
    """As a command in the repository's root would write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: see above")
