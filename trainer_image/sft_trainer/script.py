"""One rank that runs a job's own script as `python script.py` would: called by `sft_trainer.child`.

What goes wrong in it is reported as a rank of ours reports it, by its exception; a plain exit code by torchrun.
"""

import atexit
import os
import sys
import threading
import traceback
import types
from pathlib import Path

from sft_trainer.report import Report, read_reports, write_report
from sftjob.failure import JobFailure, Reason, exit_code


def script_stage(scratch: Path, path: str, arguments: list[str]) -> int:
    """The exit code that Python itself would end with; of a JobFailure, that of its reason."""
    code = _run(scratch, path, arguments)
    # As Python does at its end, which `child` leaves out: see there.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code


def _run(scratch: Path, path: str, arguments: list[str]) -> int:
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    # As the main module, so that what it defines can be pickled, and spawned processes find it.
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = path
    try:
        exec(compile(Path(path).read_bytes(), path, "exec"), main.__dict__)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return (ended.code or 0) & 0xFF
        print(ended.code, file=sys.stderr)
        return 1
    except JobFailure as failure:
        print(failure.message, file=sys.stderr)
        _report(scratch, Report(reason=failure.reason, message=failure.message))
        return exit_code(failure.reason)
    except BaseException as error:
        shown = error.__traceback__
        traceback.print_exception(type(error), error, shown and shown.tb_next)
        message = "".join(traceback.format_exception_only(error)).strip()
        _report(scratch, Report(reason=Reason.RANK_FAILED, message=message, peer_lost=_is_peer_loss(error)))
        return 1
    return 0


def _report(scratch: Path, report: Report) -> None:
    """A Trainer in the script that failed has told why; of one that came to its end, how far it came is kept."""
    who = f"rank-{os.environ['RANK']}"
    told = read_reports(scratch).get(who)
    if told is None:
        write_report(scratch, who, report)
    elif told.reason is Reason.SUCCEEDED:
        changed = {name: getattr(report, name) for name in ("reason", "message", "peer_lost")}
        write_report(scratch, who, told.model_copy(update=changed))


def _is_peer_loss(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return False
    from sft_trainer.train.last_words import is_peer_loss

    return is_peer_loss(error)
