"""One source from a bucket: pinned once, then each object by ranges, for as long as it is the one that was pinned.

Called by `downloads.stage`. Ranges are asked for with the object's ETag, so that no file is made of two
versions; written in place, so that two writers of one file put the same bytes there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from sft_trainer.downloads.patience import Patience, asked
from sft_trainer.downloads.sources import BucketSource
from sft_trainer.downloads.transfer import Transfer, is_whole, size_of
from sft_trainer.downloads.wanted import TEMPLATES, data_files, small_files, weight_files
from sft_trainer.s3.bucket import PART_BYTES, BucketFailure, Cause, Listed, Place
from sft_trainer.s3.refusals import is_passing, read_refusal
from sftjob.base import digest
from sftjob.failure import JobFailure, Reason
from sftjob.plan import PinnedObject


def pin(source: BucketSource, *, on_detail: Callable[[str], None]) -> list[PinnedObject]:
    """What lies there now, as far as training may need it. Raises JobFailure."""
    place = Place(source.uri)
    try:
        found = asked(place.listed, patience=_patience(on_detail))
        if not found:
            raise BucketFailure(Cause.MISSING, "NoSuchKey")
    except BucketFailure as failure:
        raise read_refusal(source, failure) from failure
    if source.kind == "model" and found[0].path == "":
        raise JobFailure(
            Reason.MODEL_UNREADABLE, f"{source.field}.uri: {source.uri} is one object; name the folder that it lies in"
        )
    if source.kind == "model":
        taken = [one for one in found if one.path.rpartition("/")[0] in ("", TEMPLATES)]
    elif found[0].path == "":
        taken = found
    else:
        taken = data_files(source, {one.path: one for one in found})
    return [PinnedObject(path=one.path, bytes=one.size, etag=one.etag) for one in taken]


def revision_of(objects: Sequence[PinnedObject]) -> str:
    """Stands for all of them in a status."""
    return digest([one.to_json_dict() for one in objects])


def download(source: BucketSource, objects: Sequence[PinnedObject], *, on_detail: Callable[[str], None]) -> None:
    """Returns when all that training needs lies in `source.files`. Raises JobFailure."""
    if not is_whole(source):
        _BucketTransfer(source, objects, on_detail).run()


class _BucketTransfer(Transfer[BucketSource, Listed]):
    def __init__(self, source: BucketSource, objects: Sequence[PinnedObject], on_detail: Callable[[str], None]) -> None:
        super().__init__(source, on_detail)
        self._place = Place(source.uri)
        self._objects = [Listed(one.path, one.bytes, one.etag) for one in objects]

    def _take(self) -> Sequence[Listed]:
        if self._source.kind == "dataset":
            self._fetch(self._objects)
            return self._objects
        listing = {one.path: one for one in self._objects}
        small = small_files(listing)
        self._fetch(small)
        weights = weight_files(self._source, listing) if self._source.takes_weights else []
        self._fetch(small + weights)
        return small + weights

    def _fill(self, partial: Path, file: Listed) -> None:
        partial.touch()
        with partial.open("r+b") as opened:
            opened.seek(min(size_of(partial) or 0, file.size))
            try:
                fill(opened, file, self._place, on_detail=self._on_detail)
            except BucketFailure as failure:
                raise self._gone(file, failure) from failure

    def _gone(self, file: Listed, failure: BucketFailure) -> JobFailure:
        if failure.cause not in (Cause.CHANGED, Cause.MISSING):
            return read_refusal(self._source, failure)
        reason = Reason.INVALID_DATA if self._source.kind == "dataset" else Reason.MODEL_UNREADABLE
        became = "has changed" if failure.cause is Cause.CHANGED else "is gone"
        what = f"{file.path} of {self._source.uri}" if file.path else self._source.uri
        return JobFailure(
            reason,
            f"{self._source.field}.uri: {what} {became} since the job's first attempt listed it (ETag {file.etag}); "
            "restore that version, or create another job for the new one",
        )

    def _target(self, file: Listed) -> Path:
        return self._within(Path(self._source.local), file.path)

    def _content_id(self, file: Listed) -> str:
        return file.etag

    def _is_right(self, partial: Path, file: Listed) -> bool:
        return size_of(partial) == file.size

    def _mangled(self, file: Listed) -> JobFailure:
        return JobFailure(
            Reason.BUCKET_UNREACHABLE,
            f"{self._source.field}.uri: {file.path} of {self._source.uri} arrived twice with another length than is "
            f"listed ({file.size}); look for a proxy that changes it",
        )


def fill(opened: BinaryIO, file: Listed, place: Place, *, on_detail: Callable[[str], None]) -> None:
    """From where the opened file stands. Every byte that arrives is kept, however slow the way is; raises BucketFailure
    where none does for long, or where asking again is of no use."""
    patience = _patience(on_detail)
    while (position := opened.tell()) < file.size:
        end = min(position + PART_BYTES, file.size)
        try:
            for block in place.read_range(file.path, position, end, etag=file.etag):
                opened.write(block)
                opened.flush()
                patience.renew()
        except BucketFailure as failure:
            patience.wait(failure)


def _patience(on_detail: Callable[[str], None]) -> Patience:
    return Patience("the object store", on_detail, refusals=(BucketFailure,), is_passing=is_passing)
