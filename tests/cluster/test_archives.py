"""An image of one program, as containerd and kind load it."""

import hashlib
import json
import tarfile
from pathlib import Path

from cluster.archives import make_archive
from cluster.build import binary, program_of


def test_an_archive_holds_the_program_whole_and_is_made_once(tmp_path: Path) -> None:
    pause = program_of("pause")
    binary(tmp_path, pause).parent.mkdir()
    binary(tmp_path, pause).write_bytes(b"program")
    (tmp_path / "images").mkdir()
    half = tmp_path / "images" / f"pause-{pause.version}.unfinished"
    half.write_bytes(b"half")  # a run that was killed

    archive = make_archive(tmp_path, pause)
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"pause-{pause.version}.tar"]
    with tarfile.open(archive) as tar:
        (listed,) = json.loads(read(tar, "manifest.json"))
        layer = read(tar, listed["Layers"][0])
        configuration = json.loads(read(tar, listed["Config"]))
    assert listed["RepoTags"] == [f"localhost:5000/pause:{pause.version}"]
    assert configuration["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert configuration["config"]["Entrypoint"] == ["/pause"]
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert read(tar, "pause") == b"program"
        assert tar.getmember("pause").mode == 0o755

    made = archive.stat()
    make_archive(tmp_path, pause)
    assert archive.stat() == made


def read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()
