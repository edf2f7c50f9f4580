"""Images of one static program each, as archives that containerd and kind load; made once per version.

An archive is what `docker save` writes: a layer, a configuration, a list. No image builder is needed for that.
"""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

from cluster.build import Program, binary

REGISTRY_NAME = "localhost:5000"
"""As images are named in pods, on either backend."""
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def image_name(program: Program) -> str:
    return f"{REGISTRY_NAME}/{program.name}:{program.version}"


def archive_path(cache: Path, program: Program) -> Path:
    return cache / "images" / f"{program.file_name}.tar"


def make_archive(cache: Path, program: Program) -> Path:
    target = archive_path(cache, program)
    if target.exists():
        return target
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o755, binary(cache, program).stat().st_size
        with binary(cache, program).open("rb") as content:
            tar.addfile(entry, content)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    configuration = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    listing = [{"Config": "configuration.json", "RepoTags": [image_name(program)], "Layers": ["layer.tar"]}]
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w") as tar:
        for name, data in (
            ("layer.tar", layer.getvalue()),
            ("configuration.json", json.dumps(configuration).encode()),
            ("manifest.json", json.dumps(listing).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    unfinished.rename(target)
    return target
