"""Where the URIs of a spec lie on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sftjob import names
from sftjob.spec import SFTJobSpec


@dataclass(frozen=True)
class Claims:
    """Folders that stand for persistent volume claims: those named, and `<root>/<claim>` for the rest.

    `scratch` is where node 0 of a run keeps its own copy of what it writes into buckets.
    """

    root: Path
    folders: Mapping[str, Path]
    scratch: Path

    def path_of(self, uri: str) -> str:
        """`pvc://claim/path`, `file:///path` and the copy of `s3://bucket/path` as an absolute path."""
        scheme, _, rest = uri.partition("://")
        if scheme == "file":
            return rest
        if scheme == "s3":
            return str((self.scratch / names.S3_FOLDER / rest).absolute())
        claim, _, path = rest.partition("/")
        return str((self.folders.get(claim, self.root / claim) / path).absolute())


def claims_of(spec: SFTJobSpec) -> list[str]:
    """Names of the claims that a spec speaks of, each once."""
    rests = [uri.removeprefix("pvc://") for uri in spec.uris if uri.startswith("pvc://")]
    return list(dict.fromkeys(rest.partition("/")[0] for rest in rests))
