"""`python -m sft_operator`: watches SFTJobs and runs them, in a cluster from its pod or outside with a kubeconfig."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time

from sft_operator.kubernetes.api import own_namespace
from sft_operator.kubernetes.pytorch_job import TrainerDefaults
from sft_operator.kubernetes.run import Options, run

log = logging.getLogger("sft_operator")

PAUSE_SECONDS = 3
"""Before a fresh start."""


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # Until the watches take the signals, and after them: as a container's process 1 it would hear none.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    stop = asyncio.Event()
    try:
        asyncio.run(run(options, stop))
    except Exception as error:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        if stop.is_set():
            # Whatever is under way is taken up by the next operator.
            return
        log.error("starting anew", exc_info=error)
        time.sleep(PAUSE_SECONDS)
    # A new program in the same process: nothing of the old one's state, tasks and connections is left.
    os.execv(sys.executable, [sys.executable, "-m", "sft_operator", *sys.argv[1:]])


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m sft_operator", description=__doc__)
    parser.add_argument("--trainer-image", required=True, help="image of jobs that name none in spec.compute.image")
    parser.add_argument("--trainer-service-account", default="default", help="service account of trainer pods")
    parser.add_argument("--image-pull-secret", action="append", default=[], help="for trainer pods; may be repeated")
    parser.add_argument("--namespace", action="append", default=[], help="to work in, may be repeated; default: all")
    parser.add_argument("--lease-namespace", help="of the lease that one operator holds; default: its own, or default")
    parser.add_argument(
        "--serve", metavar="HOST:PORT", help="address of /livez, /readyz and /metrics, :PORT for all; default: none"
    )
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


if __name__ == "__main__":
    main()
