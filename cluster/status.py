"""What of the cluster lives, and what it takes of the disk."""

import subprocess
from pathlib import Path

from cluster import kind
from cluster.build import PROGRAMS
from cluster.parts import is_alive, log_file, parts
from cluster.place import Record, size_bytes


def dead_parts(folder: Path, cache: Path, record: Record) -> list[str]:
    """A sentence for each, with where to look."""
    if record.backend == "kind":
        told = subprocess.run(kind.status_command(record.name).arguments, capture_output=True, text=True, check=True)
        states = dict(line.split() for line in told.stdout.splitlines())
        expected = kind.node_names(record.name, nodes=record.nodes)
        dead = {name: states.get(name, "gone") for name in expected if states.get(name) != "running"}
        return [f"{name}: {state}; see docker logs {name}" for name, state in dead.items()]
    every = parts(folder, cache, nodes=record.nodes)
    return [f"{part.name}: ended; see {log_file(folder, part)}" for part in every if not is_alive(part)]


def disk(folder: Path, cache: Path) -> dict[str, int]:
    """Bytes, by what they are."""
    inside = {"claims": folder / "claims"}
    inside |= {path.name: path for path in sorted(folder.glob("node-*"))}
    found = {
        "programs": size_bytes(cache / "bin"),
        "their images": size_bytes(cache / "images"),
        "registry": size_bytes(cache / "registry"),
        "image builder": size_bytes(cache / "builder"),
        "Go's caches": size_bytes(cache / "go"),
        **{name: size_bytes(path) for name, path in inside.items()},
    }
    found["the rest"] = max(0, size_bytes(cache) - sum(found.values()))
    return {name: size for name, size in found.items() if size}


def old_programs(cache: Path) -> list[Path]:
    """Of earlier versions: nothing uses them any more."""
    used = {f"{program.name}-{program.version}" for program in PROGRAMS}
    return [path for path in (cache / "bin").glob("*") if path.suffix != ".yaml" and path.name not in used]
