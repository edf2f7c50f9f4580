"""`sft run`: what it says, what it leaves and how it ends."""

import json
import os
import signal

import pytest
from sft_user import User


def test_a_run_ends_with_the_models_folder(user: User) -> None:
    run = user.sft("run", "job.yaml")
    assert (run.returncode, run.stderr) == (0, "")
    first, second = run.stdout.splitlines()[:2]
    assert first == "1 rank = 1 node x 1 process; global batch 1 pack = 1 rank x 1 accumulation step of 1 pack"
    assert second.startswith("attempt 1: ")
    data, succeeded, model, curve = run.stdout.splitlines()[-4:]
    assert data == "data: 3 samples, 30 tokens, 20 of them trained; 0 truncated, 0 dropped; 2 packs"
    said = run.stdout.splitlines()
    begin = said.index("sample 1; trained is what stands between ⟦ and ⟧")
    assert said[begin - 2 : begin + 2] == [data, "", said[begin], "asked ⟦answered⟧"]
    assert said.count(said[begin]) == 1
    assert succeeded.startswith("tiny succeeded: ")
    assert succeeded.endswith(" s in 1 attempt, final loss 0.486")
    assert model == f"model: {user.folder}/claims/models/tuned"
    assert curve == "loss curve: runs/tiny/loss.png"
    assert (user.work_folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_job_is_told_again_and_not_run_again(user: User) -> None:
    first = user.sft("run", "job.yaml")
    again = user.sft("run", "job.yaml")
    assert again.returncode == 0
    assert again.stdout.splitlines() == ["runs/tiny: this run has ended already", *first.stdout.splitlines()[-4:]]
    assert [folder.name for folder in (user.work_folder / "attempts").iterdir()] == ["1"]


def test_a_killed_rank_is_told_and_the_next_attempt_resumes(user: User) -> None:
    user.faults = {"1": "RankKilled"}
    run = user.sft("run", "job.yaml")
    assert run.returncode == 0
    said = run.stdout.splitlines()
    end = said.index("attempt 1 ended after step 12 (step 10 is saved): RankKilled: rank 0 was killed")
    assert said.index("attempt 2 resumes at step 11") > end
    assert " in 2 attempts, " in run.stdout


def test_a_lost_launcher_costs_a_disruption_and_no_retry(user: User) -> None:
    user.faults = {"1": "SIGKILL"}
    assert user.sft("run", "job.yaml").returncode == 0
    attempts = user.status()["attempts"]
    assert isinstance(attempts, dict)
    assert (attempts["failures"], attempts["disruptions"]) == (0, 1)


def test_what_would_fail_again_ends_the_run_with_its_message_and_code(user: User) -> None:
    user.faults = {"1": "InvalidData"}
    run = user.sft("run", "job.yaml")
    assert run.returncode == 65
    assert run.stdout.splitlines()[-2:] == [
        "tiny failed: InvalidData: data.jsonl:3: not JSON; correct this line",
        "log: runs/tiny/attempts/1/node-0/launcher.log",
    ]


def test_a_failed_job_is_tried_again_by_the_same_command_with_fresh_budgets(user: User) -> None:
    user.file.write_text(user.file.read_text() + "  runPolicy: {retries: 0}\n")
    user.faults = {"1": "RankKilled", "2": "RankKilled"}
    assert user.sft("run", "job.yaml").returncode == 70
    assert user.sft("run", "job.yaml").returncode == 70
    again = user.sft("run", "job.yaml")
    assert again.returncode == 0
    said = again.stdout.splitlines()
    assert said[0] == "runs/tiny: this run has failed; trying again"
    assert "attempt 3 resumes at step 11" in said
    attempts = user.status()["attempts"]
    assert isinstance(attempts, dict)
    assert [record["number"] for record in attempts["history"]] == [3, 2, 1]
    assert attempts["failures"] == 0


def test_a_job_out_of_retries_says_so_and_ends_with_the_last_causes_code(user: User) -> None:
    user.file.write_text(user.file.read_text() + "  runPolicy: {retries: 0}\n")
    user.faults = {"1": "RankKilled"}
    run = user.sft("run", "job.yaml")
    assert run.returncode == 70
    assert "tiny failed: RetriesExhausted: 1 failure, 0 retries allowed; RankKilled: rank 0 was killed" in run.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_signal_saves_and_a_second_run_goes_on(user: User, number: signal.Signals, code: int) -> None:
    user.held_after = 3
    run = user.start("run", "job.yaml")
    user.wait_for_step(3)
    run.send_signal(number)
    output, errors = run.communicate(timeout=300)
    assert (run.returncode, errors) == (code, ""), output
    assert user.status()["phase"] == "Suspended", output
    if number != signal.SIGHUP:  # after that nobody listens any more
        assert output.splitlines()[-1] == (
            "suspended; step 3 is saved. Go on with: sft run job.yaml --work-dir runs/tiny"
        ), output
    user.let_go()
    again = user.sft("run", "job.yaml", "--work-dir", "runs/tiny")
    assert again.returncode == 0, again
    assert "attempt 2 resumes at step 4" in again.stdout, again
    attempts = user.status()["attempts"]
    assert isinstance(attempts, dict)
    assert (attempts["failures"], attempts["disruptions"], attempts["withoutProgress"]) == (0, 0, 0)


def test_a_run_whose_hang_up_is_ignored_goes_on(user: User) -> None:
    """As `nohup` starts it."""
    user.step_seconds = 0.1
    run = user.start("run", "job.yaml", ignores_hang_up=True)
    user.wait_for_step(3)
    run.send_signal(signal.SIGHUP)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0
    assert "tiny succeeded: " in output


def test_a_run_goes_on_when_whoever_read_it_has_gone(user: User) -> None:
    user.step_seconds = 0.1
    run = user.start("run", "job.yaml")
    user.wait_for_step(1)
    assert run.stdout is not None
    run.stdout.close()
    assert run.wait(timeout=300) == 0
    assert user.status()["phase"] == "Succeeded"
    assert run.stderr is not None
    assert run.stderr.read() == ""


def test_a_second_ctrl_c_kills_at_once(user: User) -> None:
    user.faults = {"1": "ignores SIGTERM"}
    user.held_after = 2
    run = user.start("run", "job.yaml")
    user.wait_for_step(2)
    run.send_signal(signal.SIGINT)
    assert run.stdout is not None
    assert any("saving and stopping" in line for line in run.stdout)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 130
    assert output.splitlines()[-1].startswith("killed; what was saved before is intact.")
    assert not (user.work_folder / "attempts/1/node-0/outcome.json").exists()
    user.let_go()
    user.faults = {}
    assert user.sft("run", "job.yaml").returncode == 0


def test_a_killed_run_leaves_its_attempt_at_work_and_the_next_run_adopts_it(user: User) -> None:
    user.held_after = 2
    run = user.start("run", "job.yaml")
    user.wait_for_step(2)
    run.kill()
    run.communicate()
    launcher = user.launcher_pid()
    os.kill(launcher, 0)
    again = user.start("run", "job.yaml")
    assert again.stdout is not None
    assert again.stdout.readline().startswith("1 rank")
    assert again.stdout.readline() == "attempt 1 is still at work: going on with it\n"
    user.let_go()
    output, errors = again.communicate(timeout=300)
    assert (again.returncode, errors) == (0, ""), output
    assert user.launcher_pid() == launcher
    assert [folder.name for folder in (user.work_folder / "attempts").iterdir()] == ["1"]


def test_two_runs_in_one_folder_are_refused(user: User) -> None:
    user.held_after = 1
    user.start("run", "job.yaml")
    user.wait_for_step(1)
    second = user.sft("run", "job.yaml")
    assert (second.returncode, second.stdout) == (64, "")
    assert second.stderr == "runs/tiny: another `sft` is at work in this folder; wait for it or stop it\n"


def test_a_changed_spec_is_refused_with_the_fields_and_the_remedy(user: User) -> None:
    user.file.write_text(user.file.read_text() + "  runPolicy: {retries: 0}\n")
    user.faults = {"1": "RankKilled"}
    assert user.sft("run", "job.yaml").returncode == 70
    text = user.file.read_text()
    user.file.write_text(text.replace("chats.jsonl", "chat.jsonl") + "  training: {seed: 7, totalStep: 3}\n")
    run = user.sft("run", "job.yaml")
    assert (run.returncode, run.stdout) == (64, "")
    assert run.stderr == (
        "runs/tiny holds a run of another version of this job; changed: spec.data.datasets[0].uri, "
        "spec.training.seed, spec.training.totalStep. Undo the change to go on with that run, "
        "or start a new one with another name and another output, and another checkpoint.storage where that is given\n"
    )


def test_a_job_that_has_failed_and_saved_nothing_may_be_corrected_its_claims_too(user: User) -> None:
    user.faults = {"1": "InvalidData"}
    assert user.sft("run", "job.yaml", "--claim", "data=data").returncode == 65
    text = user.file.read_text()
    user.file.write_text(text.replace("chats.jsonl", "more.jsonl") + "  training: {seed: 7}\n")
    (user.folder / "claims/data/more.jsonl").touch()
    run = user.sft("run", "job.yaml", "--claim", "data=claims/data")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[0] == "runs/tiny: this run has failed; trying again"
    assert sorted(folder.name for folder in (user.work_folder / "attempts").iterdir()) == ["1", "2"]


def test_a_run_on_storage_of_another_one_shows_no_curve_of_that(user: User) -> None:
    assert user.sft("run", "job.yaml").returncode == 0
    record = user.folder / "claims/models/tuned.checkpoints/run.json"
    owner = {"namespace": "default", "name": "tiny", "uid": "another"}
    spec = json.loads((user.work_folder / "job.json").read_text())["spec"]
    record.write_text(json.dumps({"owner": owner, "spec": spec}))
    assert "loss" not in user.sft("run", "job.yaml").stdout
    assert user.sft("plot", "runs/tiny").stderr == "runs/tiny: no step was trained yet; wait for the first one\n"


def test_a_changed_run_policy_is_taken_over(user: User) -> None:
    user.held_after = 1
    run = user.start("run", "job.yaml")
    user.wait_for_step(1)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=300)
    user.let_go()
    user.faults = {"2": "RankKilled"}
    user.file.write_text(user.file.read_text() + "  runPolicy: {retries: 0}\n")
    assert user.sft("run", "job.yaml").returncode == 70


def test_a_claim_is_the_folder_that_it_was_at_the_first_start(user: User) -> None:
    user.file.write_text(user.file.read_text() + "  runPolicy: {retries: 0}\n")
    user.faults = {"1": "RankKilled"}
    here = ("--claim", "data=claims/data", "--claim", "models=claims/models")
    assert user.sft("run", "job.yaml", *here).returncode == 70
    other = user.sft("run", "job.yaml", "--claim", "data=nowhere")
    assert other.returncode == 64
    assert other.stderr == (
        f"--claim data=nowhere: this run began with {user.folder}/claims/data; "
        "name that folder again, or start a new run with another --work-dir\n"
    )
    unknown = user.sft("run", "job.yaml", "--claim", "dta=x")
    assert unknown.stderr == "--claim dta: no URI of the job begins with pvc://dta/; use one of data, models\n"


def test_a_file_with_faults_is_refused_with_each_of_them(user: User) -> None:
    user.file.write_text(
        user.file.read_text().replace("chats,", "Chats,") + "  training: {optimiser: {}, totalStep: many}\n"
    )
    for command in ("run", "validate"):
        refused = user.sft(command, "job.yaml")
        assert (refused.returncode, refused.stdout) == (64, "")
        assert refused.stderr.splitlines() == [
            "spec.data.datasets[0].name: 'Chats' has the wrong form; "
            "use lower-case letters, digits and dashes, with a letter or digit at both ends",
            "spec.training.totalStep: 'many' has the wrong type; use a valid integer, unable to parse string as an "
            "integer",
            "spec.training.optimiser: unknown field; did you mean optimizer?",
        ]
    assert not user.work_folder.exists()


def test_what_is_no_yaml_is_refused_with_its_line(user: User) -> None:
    user.file.write_text("spec:\n  model: {loadFrom\n")
    refused = user.sft("validate", "job.yaml")
    assert refused.returncode == 64
    assert refused.stderr.startswith("job.yaml:3:1: not valid YAML, ")
    assert user.sft("validate", "nowhere.yaml").stderr == (
        "nowhere.yaml: No such file or directory; name a YAML file with one SFTJob\n"
    )


def test_a_valid_file_is_told_with_its_arithmetic(user: User) -> None:
    user.file.write_text(
        user.file.read_text() + "  training: {globalBatchSize: 64}\n  compute: {nodes: 2, processesPerNode: 8}\n"
    )
    assert user.sft("validate", "job.yaml").stdout == (
        "tiny is valid: 16 ranks = 2 nodes x 8 processes; global batch 64 packs = 16 ranks x 4 "
        "accumulation steps of 1 pack\n"
    )


def test_what_a_file_allows_and_seldom_means_is_told(user: User) -> None:
    least = user.file.read_text()
    user.file.write_text(least + "  training: {lora: {quantize: nf4}}\n")
    said = user.sft("validate", "job.yaml")
    assert said.returncode == 0
    assert said.stderr.splitlines() == [
        "training.lora.quantize: nf4 needs an NVIDIA GPU, and compute.resources.limits names none; on a cluster add "
        "nvidia.com/gpu, or the job ends with code 64",
    ]
    gpus = least + '  compute: {resources: {limits: {nvidia.com/gpu: "8"}}'
    user.file.write_text(gpus + "}\n")
    assert user.sft("validate", "job.yaml").stderr == (
        "compute.resources.limits: 8 GPUs for 1 process of each node, and each uses one; set "
        "compute.processesPerNode: 8\n"
    )
    user.file.write_text(gpus + ", processesPerNode: 8}\n")
    assert user.sft("validate", "job.yaml").stderr == ""
