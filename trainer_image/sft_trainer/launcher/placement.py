"""Where a launcher runs: the only things it takes from its environment."""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sftjob import names


@dataclass(frozen=True)
class Placement:
    node_rank: int
    master_address: str
    master_port: int
    scratch: Path
    """A folder of this launcher alone; may vanish with it."""
    termination_message: Path
    serve_address: str
    """host:port, without a host of all addresses; port 0 takes a free one."""
    pod_uid: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        return cls(
            node_rank=int(environment[names.NODE_RANK_VARIABLE]),
            master_address=environment[names.MASTER_ADDRESS_VARIABLE],
            master_port=int(environment[names.MASTER_PORT_VARIABLE]),
            scratch=Path(environment[names.SCRATCH_VARIABLE]),
            termination_message=Path(environment[names.TERMINATION_MESSAGE_VARIABLE]),
            serve_address=environment[names.SERVE_ADDRESS_VARIABLE],
            pod_uid=environment.get(names.POD_UID_VARIABLE),
        )


def wait_for_name(address: str, *, is_stopped: Callable[[], bool]) -> None:
    """Until node 0 can be found: the cluster knows its name once its pod runs, which may pull an image for minutes."""
    while not is_stopped():
        try:
            socket.getaddrinfo(address, None)
        except OSError:
            time.sleep(0.5)
        else:
            return
