"""The calls that the operator makes to the API server, and no others: JSON in, JSON out.

Raises ApiException with the server's status, aiohttp.ClientError and TimeoutError where there was no answer.
"""

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientPayloadError, StreamReader
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, ApiException, Configuration

from sft_operator.lifecycle.backend import JobKey
from sftjob import names

Object = dict[str, Any]
"""An object as the API server writes it."""

REQUEST_SECONDS = 30
PAGE = 500
"""Objects of a list that are read at a time."""
PYTORCH_JOBS_API = "kubeflow.org/v1"
QUEUES_GROUP = "kueue.x-k8s.io"

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Listing:
    """A page of one."""

    items: list[Object]
    version: int
    """As of which the list is true."""


def is_in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and (_SERVICE_ACCOUNT / "token").exists()


def own_namespace() -> str | None:
    """None outside a cluster."""
    return (_SERVICE_ACCOUNT / "namespace").read_text().strip() if is_in_cluster() else None


async def connect() -> ApiClient:
    """With the pod's service account, or else the kubeconfig that KUBECONFIG or ~/.kube/config names."""
    configuration = Configuration()
    if is_in_cluster():
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    # One try a call: what calls it decides whether and when to try again.
    configuration.retries = None
    # Else it looks for a proxy and a netrc file before each call, in two threads. kopf's watches take neither.
    configuration.client_session_kwargs = {"trust_env": False}
    return ApiClient(configuration)


class ClusterApi:
    def __init__(self, client: ApiClient, *, namespaces: tuple[str, ...]) -> None:
        self._client = client
        self.namespaces = namespaces
        """Those to look at; none for all."""

    async def job_schema(self) -> Object | None:
        """Of SFTJobs, as everybody may read it. None where the cluster has none, or does not tell of them yet."""
        told = await self._get(f"/openapi/v3/apis/{names.API_VERSION}")
        schemas: dict[str, Object] = told["components"]["schemas"] if told else {}
        return next((one for one in schemas.values() if _is_of_a_job(one)), None)

    def list_jobs(self) -> AsyncIterator[Listing]:
        return self._pages(f"/apis/{names.API_VERSION}", names.PLURAL)

    async def may_list_jobs_of(self, namespace: str) -> bool:
        try:
            await self._call("GET", _jobs_path(namespace), query={"limit": "1"})
        except ApiException as error:
            if error.status == 403:
                return False
            raise
        return True

    async def get_job(self, key: JobKey) -> Object | None:
        return await self._get(_job_path(key))

    async def write_status(self, key: JobKey, *, resource_version: str, status: Object) -> Object:
        """Raises ApiException 409 where the object isn't at this version any more."""
        patch = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]
        return await self._call("PATCH", f"{_job_path(key)}/status", body=patch, kind="application/json-patch+json")

    async def delete_job(self, key: JobKey, *, uid: str, resource_version: str) -> None:
        """Raises ApiException 409 where it is another object by now, or not at this version any more."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options = {"propagationPolicy": "Background", "preconditions": preconditions}
        await self._call("DELETE", _job_path(key), body=options)

    def list_pytorch_jobs(self) -> AsyncIterator[Listing]:
        return self._pages(f"/apis/{PYTORCH_JOBS_API}", "pytorchjobs", labels=names.JOB_UID_LABEL)

    async def get_pytorch_job(self, namespace: str, name: str) -> Object | None:
        return await self._get(f"{_pytorch_jobs_path(namespace)}/{name}")

    async def create_pytorch_job(self, body: Object) -> Object:
        return await self._call("POST", _pytorch_jobs_path(body["metadata"]["namespace"]), body=body)

    async def mark_pytorch_job(self, found: Object, marks: dict[str, dict[str, str]]) -> Object:
        """This very object, and no other of its name. `marks`: labels or annotations, by these words."""
        metadata = found["metadata"]
        patch = {"metadata": {"uid": metadata["uid"]} | marks}
        path = f"{_pytorch_jobs_path(metadata['namespace'])}/{metadata['name']}"
        return await self._call("PATCH", path, body=patch, kind="application/merge-patch+json")

    async def delete_pytorch_job(self, found: Object) -> None:
        """This very object, and no other of its name; it stays until its pods are gone."""
        metadata = found["metadata"]
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": metadata["uid"]}}
        path = f"{_pytorch_jobs_path(metadata['namespace'])}/{metadata['name']}"
        await self._call("DELETE", path, body=options)

    def list_pods(self) -> AsyncIterator[Listing]:
        return self._pages("/api/v1", "pods", labels=names.JOB_UID_LABEL)

    async def list_pods_of(self, key: JobKey, uid: str) -> list[Object]:
        query = {"labelSelector": f"{names.JOB_UID_LABEL}={uid}"}
        listing = await self._call("GET", f"/api/v1/namespaces/{key.namespace}/pods", query=query)
        return list(listing["items"])

    async def list_workloads(self) -> AsyncIterator[Listing]:
        """Of Kueue, in the version that it prefers; nothing where the cluster has no Kueue."""
        group = await self._get(f"/apis/{QUEUES_GROUP}")
        if group is not None:
            async for page in self._pages(f"/apis/{group['preferredVersion']['groupVersion']}", "workloads"):
                yield page

    async def pod_answer(self, namespace: str, pod: str, path: str, *, most_bytes: int) -> bytes:
        """What a pod's launcher answers, asked through the API server."""
        url = f"/api/v1/namespaces/{namespace}/pods/{pod}:{names.SERVE_PORT}/proxy{path}"
        return await self._bytes("GET", url, most_bytes=most_bytes)

    def list_warnings(self, namespace: str) -> AsyncIterator[Listing]:
        return self._pages("/api/v1", "events", fields="type=Warning", namespaces=(namespace,))

    async def create_event(self, body: Object) -> None:
        await self._call("POST", f"/api/v1/namespaces/{body['metadata']['namespace']}/events", body=body)

    async def has_resource(self, group_version: str, plural: str) -> bool:
        found = await self._get(f"/apis/{group_version}")
        return found is not None and any(resource["name"] == plural for resource in found["resources"])

    async def _pages(
        self,
        group: str,
        plural: str,
        *,
        labels: str | None = None,
        fields: str | None = None,
        namespaces: tuple[str, ...] = (),
    ) -> AsyncIterator[Listing]:
        """`namespaces` are those to look at unless others are named."""
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        for scope in [f"/namespaces/{name}" for name in namespaces or self.namespaces] or [""]:
            query = {"limit": str(PAGE)} | {name: value for name, value in selectors.items() if value}
            while True:
                page = await self._call("GET", f"{group}{scope}/{plural}", query=query)
                yield Listing(page["items"], int(page["metadata"]["resourceVersion"]))
                if not page["metadata"].get("continue"):
                    break
                query["continue"] = page["metadata"]["continue"]

    async def _get(self, path: str) -> Object | None:
        try:
            return await self._call("GET", path)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    async def _call(self, method: str, path: str, **options: Any) -> Object:
        answer: Object = json.loads(await self._bytes(method, path, **options))
        return answer

    async def _bytes(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, str] | None = None,
        kind: str = "application/json",
        most_bytes: int | None = None,
    ) -> bytes:
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": kind, "Accept": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = await self._client.call_api(*request, _request_timeout=REQUEST_SECONDS)
        content: bytes
        if most_bytes is None:
            content = await response.read()  # type: ignore[no-untyped-call]
        else:
            content = await read_at_most(response.response.content, most_bytes)
        if not 200 <= response.status < 300:
            raise ApiException(status=response.status, reason=response.reason, body=content.decode(errors="replace"))
        return content


async def read_at_most(stream: StreamReader, most_bytes: int) -> bytes:
    """To its end. Raises aiohttp.ClientPayloadError where there is more."""
    content = b""
    async for part in stream.iter_any():
        content += part
        if len(content) > most_bytes:
            raise ClientPayloadError(f"an answer of more than {most_bytes} bytes")
    return content


def message_of(error: ApiException) -> str:
    """The API server's own sentence."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError):
        return f"{error.status} {error.reason}"


def _is_of_a_job(schema: Object) -> bool:
    kind = {"group": names.GROUP, "version": names.VERSION, "kind": names.KIND}
    return kind in schema.get("x-kubernetes-group-version-kind", [])


def _job_path(key: JobKey) -> str:
    return f"{_jobs_path(key.namespace)}/{key.name}"


def _jobs_path(namespace: str) -> str:
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"


def _pytorch_jobs_path(namespace: str) -> str:
    return f"/apis/{PYTORCH_JOBS_API}/namespaces/{namespace}/pytorchjobs"
