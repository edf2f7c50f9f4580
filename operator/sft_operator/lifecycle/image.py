"""The image of an attempt's pods where the spec names none. Pure; called by `decide` when it announces an attempt."""

from sftjob.spec import SFTJobSpec
from sftjob.status import SFTJobStatus


def next_image(status: SFTJobStatus, spec: SFTJobSpec, *, default: str | None) -> str | None:
    """Of the attempt to come. What has saved a checkpoint goes on in the image that it has: the libraries of another
    one may make other tokens of the same data, and from other data nothing is resumed.

    None where the spec names one, or where attempts have none.
    """
    if spec.compute.image is not None:
        return None
    kept = None if status.saved_step is None else status.attempts.image
    return kept or default
