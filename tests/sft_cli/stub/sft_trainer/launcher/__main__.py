"""Stands in for the launcher in tests of `sft run`: trains nothing, but speaks and obeys as the real one does.

Twenty steps, a checkpoint every five, told by STUB_FAULTS ({attempt: fault}) how each attempt goes wrong. After step
STUB_HELD_AFTER it goes on only when there is a file `go on` where its user works.
"""

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from sftjob.failure import Reason, exit_code
from sftjob.inspection import Piece, ShownSamples
from sftjob.outcome import Artifact, Outcome
from sftjob.plan import LaunchPlan
from sftjob.progress import Progress, Stage
from sftjob.receipt import DataReceipt

plan = LaunchPlan.from_json(sys.argv[sys.argv.index("--plan") + 1])
scratch = Path(os.environ["SFTJOB_SCRATCH"])
storage = Path(plan.storage)
metrics = storage / "attempts" / str(plan.attempt) / "metrics.jsonl"
metrics.parent.mkdir(parents=True, exist_ok=True)
saved_file = storage / "saved"
fault = json.loads(os.environ.get("STUB_FAULTS", "{}")).get(str(plan.attempt), "")
held_after = int(os.environ["STUB_HELD_AFTER"])
started_at = datetime.now(UTC)
resumed_from = int(saved_file.read_text()) if saved_file.exists() else None
saved_step = resumed_from
stopping = False


def stop(*_):
    global stopping
    stopping = True


def report(stage, **fields):
    progress = Progress(
        attempt=plan.attempt,
        stage=stage,
        total_steps=20,
        resumed_from=resumed_from,
        saved_step=saved_step,
        reported_at=datetime.now(UTC),
        **fields,
    )
    temporary = scratch / "progress.tmp"
    temporary.write_text(progress.to_json())
    temporary.replace(scratch / "progress.json")
    return progress


def end(reason, **fields):
    code = exit_code(reason)
    outcome = Outcome(
        attempt=plan.attempt,
        node_rank=int(os.environ["SFTJOB_NODE_RANK"]),
        reason=reason,
        exit_code=code,
        resumed_from=resumed_from,
        saved_step=saved_step,
        started_at=started_at,
        ended_at=datetime.now(UTC),
        **fields,
    )
    Path(os.environ["SFTJOB_TERMINATION_MESSAGE"]).write_text(outcome.to_message())
    sys.exit(code)


signal.signal(signal.SIGTERM, signal.SIG_IGN if fault == "ignores SIGTERM" else stop)
print(f"stub launcher of attempt {plan.attempt}", flush=True)
report(Stage.PREPARING_DATA, detail="3 of 3 rows")
if fault == "InvalidData":
    end(Reason.INVALID_DATA, message="data.jsonl:3: not JSON; correct this line")
receipt = DataReceipt(samples=3, tokens=30, trained_tokens=20, packs=2)
if plan.attempt == 1:
    pieces = [Piece(text="asked ", is_trained=False), Piece(text="answered", is_trained=True)]
    (scratch / "samples.json").write_text(ShownSamples(receipt=receipt, samples=[pieces]).to_json())
step = resumed_from or 0
while step < 20:
    while step == held_after and not stopping and not Path("go on").exists():
        time.sleep(0.02)
    if stopping:
        saved_step = step
        saved_file.write_text(str(step))
        end(Reason.PREEMPTED, last_step=step, saved=True)
    time.sleep(float(os.environ["STUB_STEP_SECONDS"]))
    step += 1
    loss = 4 * 0.9**step
    with metrics.open("a") as file:
        row = {"step": step, "loss": loss, "lr": 1e-4, "grad_norm": 1.0, "tokens": 512, "tokens_per_second": 1000.0}
        file.write(json.dumps(row | {"samples": 4}) + "\n")
    progress = report(Stage.TRAINING, step=step, loss=loss, tokens_per_second=1000.0, eta_seconds=20 - step)
    if step % 5 == 0:
        saved_step = step
        saved_file.write_text(str(step))
    if fault == "SIGKILL" and step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "RankKilled" and step == 12:
        end(Reason.RANK_KILLED, rank=0, signal=9, last_step=12, message="rank 0 was killed")
output = Path(plan.path(plan.spec.output[0].uri))
output.mkdir(parents=True, exist_ok=True)
end(
    Reason.SUCCEEDED,
    last_step=20,
    final_digest="sha256:00",
    artifacts=[Artifact(uri=plan.spec.output[0].uri, format="hf", digest="sha256:01", bytes=1)],
    data=receipt,
    progress=progress if resumed_from != 20 else None,
)
