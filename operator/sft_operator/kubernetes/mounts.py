"""Where the URIs of a spec lie in a trainer's pod: each claim and each key of a ConfigMap is one volume."""

from sft_operator.kubernetes.api import Object
from sftjob import names
from sftjob.spec import SFTJobSpec


def path_of(uri: str) -> str:
    """The path in a pod: `s3://bucket/path` in its scratch, claims and ConfigMaps mounted. No `file:///` is there."""
    scheme, _, rest = uri.partition("://")
    folder = {
        "pvc": names.CLAIMS_FOLDER,
        "configMap": names.CONFIG_MAPS_FOLDER,
        "s3": f"{names.POD_SCRATCH}/{names.S3_FOLDER}",
    }[scheme]
    return f"{folder}/{rest}"


def volumes(spec: SFTJobSpec) -> tuple[list[Object], list[Object]]:
    """A pod's volumes and its container's mounts. A claim that nothing is written to is mounted read-only.

    By the container: a volume that is read-only as a whole is not made readable for the pod's group.
    """
    written = {claim_of(uri) for uri in spec.written_uris}
    found: list[Object] = []
    mounts: list[Object] = []
    claims = list(dict.fromkeys(claim for uri in spec.uris if (claim := claim_of(uri))))
    for index, claim in enumerate(claims):
        volume = f"claim-{index}"
        found.append({"name": volume, "persistentVolumeClaim": {"claimName": claim}})
        mount = {"name": volume, "mountPath": f"{names.CLAIMS_FOLDER}/{claim}"}
        mounts.append(mount if claim in written else mount | {"readOnly": True})
    for index, (name, keys) in enumerate(config_maps(spec).items()):
        volume = f"config-map-{index}"
        items = [{"key": key, "path": key} for key in keys]
        found.append({"name": volume, "configMap": {"name": name, "items": items}})
        mounts.append({"name": volume, "mountPath": f"{names.CONFIG_MAPS_FOLDER}/{name}", "readOnly": True})
    return found, mounts


def claim_of(uri: str) -> str | None:
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def config_maps(spec: SFTJobSpec) -> dict[str, list[str]]:
    """Keys by name."""
    found: dict[str, list[str]] = {}
    for uri in spec.uris:
        scheme, _, rest = uri.partition("://")
        if scheme == "configMap":
            name, _, key = rest.partition("/")
            found.setdefault(name, []).append(key)
    return found
