"""`python -m sft_trainer.launcher --plan <JSON>`: runs one node's part of one attempt and exits with its cause.

As a pod's process 1 it loses every signal that comes before it has a handler: that comes first, the imports after it.
"""

import argparse
import os
import sys

from sft_trainer.stop import StopSignal


def main() -> int:
    stop = StopSignal()

    from pydantic import ValidationError

    from sft_trainer.launcher.attempt import run_attempt
    from sft_trainer.launcher.placement import Placement
    from sftjob.failure import ExitCode, exit_code
    from sftjob.plan import LaunchPlan

    parser = argparse.ArgumentParser(prog="sft_trainer.launcher", description=__doc__)
    parser.add_argument("--plan", required=True, help="the launch plan, JSON")
    text = parser.parse_args().plan
    try:
        plan = LaunchPlan.from_json(text)
    except ValidationError as error:
        print(f"--plan: not a launch plan of this version; the operator writes it: {error}", file=sys.stderr)
        return ExitCode.CONFIGURATION
    return exit_code(run_attempt(plan, Placement.from_environment(os.environ), stop).reason)


if __name__ == "__main__":
    sys.exit(main())
