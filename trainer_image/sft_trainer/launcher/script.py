"""A job's own script: looked at before any rank starts, so that a wrong one costs seconds. Called by `attempt`."""

from pathlib import Path

from sft_trainer.storage.exports import export_folder
from sftjob import names
from sftjob.failure import JobFailure, Reason
from sftjob.plan import LaunchPlan
from sftjob.sources import ScriptSpec


def refuse_unusable_script(plan: LaunchPlan, script: ScriptSpec) -> None:
    """Raises JobFailure where the file can't be read, or is no Python of the version that the ranks run."""
    path = plan.path(script.uri)
    try:
        # Only compiled: what it does is the ranks' to find out.
        compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except OSError as error:
        raise _refusal(f"{path} can't be read ({error.strerror}); put the script there, or name another file") from None
    except SyntaxError as error:
        line = f", line {error.lineno}: {(error.text or '').strip()}" if error.lineno else ""
        raise _refusal(f"{path}{line}: SyntaxError: {error.msg}; correct it") from None
    except ValueError as error:  # null bytes
        raise _refusal(f"{path}: {error}; name a Python file") from None


def script_command(plan: LaunchPlan, script: ScriptSpec) -> list[str]:
    """The file's path and its arguments, those that are places as paths."""
    places = script.places.values()
    return [plan.path(script.uri), *(plan.path(one) if one in places else one for one in script.args)]


def script_environment(plan: LaunchPlan, scratch: Path) -> dict[str, str]:
    """What each rank may look for: our Trainer the launcher, a script without it where a model goes."""
    found = {names.LAUNCH_VARIABLE: str(scratch)}
    if plan.spec.outputs:
        first = export_folder(plan, plan.spec.outputs[0].uri, attempt=plan.attempt)
        found[names.OUTPUT_VARIABLE] = str(first)
    return found


def _refusal(message: str) -> JobFailure:
    return JobFailure(Reason.INVALID_CONFIGURATION, f"spec.script.uri: {message}")
