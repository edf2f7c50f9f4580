"""Asks the launcher of rank 0 of each running attempt how far it is. Advisory: what can't be read is not told.

In a cluster the pod is asked on its own address, from outside through the API server. The address is the API server's
word and the answer names pod and attempt, so that a pod can only speak for itself.
"""

import asyncio
import logging
import time
from collections.abc import Set
from dataclasses import dataclass

import aiohttp
from kubernetes.aio.client import ApiException
from pydantic import ValidationError

from sft_operator.kubernetes.api import ClusterApi, Object, read_at_most
from sft_operator.kubernetes.cache import attempt_of
from sftjob import names
from sftjob.progress import Progress

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
MAXIMAL_BYTES = 64 * 1024
AT_ONCE = 32
MOST_PAUSE_SECONDS = 60.0
"""Between two questions to a launcher whose network lets none through: each holds one of the places."""
UNHEARD_SECONDS = 60.0
"""Longer than a launcher takes to begin."""


@dataclass
class _Silence:
    """Of a launcher that was asked and has not answered since."""

    pod_uid: str
    since: float
    ask_at: float


class ProgressPoller:
    def __init__(self, api: ClusterApi, session: aiohttp.ClientSession | None) -> None:
        """`session` reaches pods on their own addresses; None where only the API server does."""
        self._api = api
        self._session = session
        self._last: dict[str, Progress] = {}
        self._heard: dict[str, float] = {}
        self._silences: dict[str, _Silence] = {}
        """By the job's uid, as are the others."""
        self._warned: set[str] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def last(self, uid: str) -> Progress | None:
        """Of a job, by its uid: the newest answer of whichever attempt."""
        return self._last.get(uid)

    def heard_at(self, uid: str) -> float:
        """When a job's launcher answered last, new or not, in monotonic seconds; 0 before the first answer."""
        return self._heard.get(uid, 0.0)

    def unheard(self) -> int:
        """Launchers that run, and have told nothing for a minute."""
        return sum(time.monotonic() - one.since >= UNHEARD_SECONDS for one in self._silences.values())

    def keep_only(self, uids: set[str]) -> None:
        for uid in self._last.keys() - uids:
            del self._last[uid], self._heard[uid]
        self._warned &= uids

    def keep_silences_of(self, uids: Set[str]) -> None:
        """Of jobs whose launcher runs: others have nobody to answer."""
        for uid in self._silences.keys() - uids:
            del self._silences[uid]

    async def ask(self, uid: str, pod: Object) -> bool:
        """Whether there is something new."""
        silence = self._silences.get(uid)
        if silence is not None and silence.pod_uid == pod["metadata"]["uid"] and time.monotonic() < silence.ask_at:
            return False
        async with self._slots:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    answer = await self._answer(pod)
                progress = Progress.from_json(answer)
            except (aiohttp.ClientError, ApiException, TimeoutError, ValidationError, OSError) as error:
                self._note_silence(uid, pod, error)
                return False
        self._silences.pop(uid, None)
        if progress.pod_uid != pod["metadata"]["uid"] or progress.attempt != attempt_of(pod):
            log.warning("%s speaks for another pod; not believed", pod["metadata"]["name"])
            return False
        self._heard[uid] = time.monotonic()
        before = self._last.get(uid)
        if before == progress:
            return False
        self._last[uid] = progress
        return True

    def _note_silence(self, uid: str, pod: Object, error: Exception) -> None:
        now, silence = time.monotonic(), self._silences.get(uid)
        if silence is None or silence.pod_uid != pod["metadata"]["uid"]:
            silence = self._silences[uid] = _Silence(pod["metadata"]["uid"], since=now, ask_at=now)
        seconds = now - silence.since
        if isinstance(error, TimeoutError):
            # As long again as it lasts: who begins late, or is slow once, is soon asked again.
            silence.ask_at = now + min(seconds, MOST_PAUSE_SECONDS)
        if seconds >= UNHEARD_SECONDS and uid not in self._warned:
            self._warned.add(uid)
            log.warning(
                "%s/%s runs and has told nothing for %.0f s (%s): its job shows no progress, and no "
                "progressDeadlineSeconds counts; let the operator reach port %d of trainer pods, if a NetworkPolicy is "
                "in the way",
                pod["metadata"]["namespace"],
                pod["metadata"]["name"],
                seconds,
                # Some have no words.
                repr(error),
                names.SERVE_PORT,
            )

    async def _answer(self, pod: Object) -> bytes:
        if self._session is None:
            return await self._api.pod_answer(
                pod["metadata"]["namespace"], pod["metadata"]["name"], "/progress", most_bytes=MAXIMAL_BYTES
            )
        host = pod["status"]["podIP"]
        host = f"[{host}]" if ":" in host else host
        async with self._session.get(f"http://{host}:{names.SERVE_PORT}/progress", allow_redirects=False) as response:
            response.raise_for_status()
            return await read_at_most(response.content, MAXIMAL_BYTES)
