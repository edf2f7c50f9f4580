"""`python -m sft_operator`: watches SFTJobs and runs them, in a cluster from its pod or outside with a kubeconfig."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import time

from sft_operator.kubernetes.api import own_namespace
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.run import Options, StartAnew, run

log = logging.getLogger("sft_operator")

PAUSE_SECONDS = 3
"""Before a fresh start."""


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(_until_told(options))
    except* StartAnew as causes:
        log.info("starting anew: %s", causes.exceptions[0])
    except* Exception as causes:
        log.error("starting anew in %d s: %s", PAUSE_SECONDS, _cause(causes), exc_info=causes)
        time.sleep(PAUSE_SECONDS)
    else:
        return
    # A new program in the same process: nothing of the old one's state, tasks and connections is left.
    os.execv(sys.executable, [sys.executable, "-m", "sft_operator", *sys.argv[1:]])


async def _until_told(options: Options) -> None:
    """Returns on SIGTERM and SIGINT: whatever is under way is taken up by the next one."""
    work = asyncio.ensure_future(run(options))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await work


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m sft_operator", description=__doc__)
    parser.add_argument("--trainer-image", required=True, help="image of jobs that name none in spec.compute.image")
    parser.add_argument("--trainer-service-account", default="default", help="service account of trainer pods")
    parser.add_argument("--image-pull-secret", action="append", default=[], help="for trainer pods; may be repeated")
    parser.add_argument("--namespace", action="append", default=[], help="to work in, may be repeated; default: all")
    parser.add_argument("--lease-namespace", help="of the lease that one operator holds; default: its own, or default")
    parser.add_argument("--serve", metavar="HOST:PORT", help="address of /livez and /metrics; default: none")
    given = parser.parse_args()
    return Options(
        defaults=TrainerDefaults(
            image=given.trainer_image,
            service_account=given.trainer_service_account,
            image_pull_secrets=tuple(given.image_pull_secret),
        ),
        namespaces=tuple(given.namespace),
        lease_namespace=given.lease_namespace or own_namespace() or "default",
        serve_address=given.serve,
    )


def _cause(group: BaseExceptionGroup) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return f"{type(first).__name__}: {first}"


if __name__ == "__main__":
    main()
