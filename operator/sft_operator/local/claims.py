"""Where the URIs of a spec lie on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sftjob.spec import SFTJobSpec


@dataclass(frozen=True)
class Claims:
    """Folders that stand for persistent volume claims: those named, and `<root>/<claim>` for the rest."""

    root: Path
    folders: Mapping[str, Path]

    def path_of(self, uri: str) -> str:
        """`pvc://claim/path` and `file:///path` as an absolute path."""
        scheme, _, rest = uri.partition("://")
        if scheme == "file":
            return rest
        claim, _, path = rest.partition("/")
        return str((self.folders.get(claim, self.root / claim) / path).absolute())


def claims_of(spec: SFTJobSpec) -> list[str]:
    """Names of the claims that a spec speaks of, each once."""
    rests = [uri.removeprefix("pvc://") for uri in spec.uris if uri.startswith("pvc://")]
    return list(dict.fromkeys(rest.partition("/")[0] for rest in rests))
