"""What a failure of a bucket means for the job: the sentence with field, value and remedy. Pure."""

import os

from sft_trainer.downloads.sources import BucketSource
from sft_trainer.s3.bucket import BucketFailure, Cause, Place
from sftjob.failure import JobFailure, Reason

_AMAZON = "s3.amazonaws.com"
_FROM = "from a Secret through spec.compute.env in a cluster, from the environment with `sft run`"


def is_passing(error: Exception) -> bool:
    """Asking again may help: the network, or a store that is busy or down."""
    return isinstance(error, BucketFailure) and error.cause is Cause.UNREACHABLE


def read_refusal(source: BucketSource, failure: BucketFailure) -> JobFailure:
    reason = Reason.INVALID_DATA if source.kind == "dataset" else Reason.MODEL_UNREADABLE
    if failure.cause is Cause.UNREACHABLE:
        reason = Reason.BUCKET_UNREACHABLE
    return JobFailure(reason, f"{source.field}.uri: {_sentence(Place(source.uri), failure, may='read')}")


def write_refusal(field: str, place: Place, failure: BucketFailure) -> JobFailure:
    return JobFailure(Reason.STORAGE_UNAVAILABLE, f"{field}: {_sentence(place, failure, may='read and write')}")


def _sentence(place: Place, failure: BucketFailure, *, may: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or _AMAZON
    match failure.cause:
        case Cause.NO_BUCKET:
            return f"{place.uri}: there is no bucket {place.bucket} at {endpoint}; correct the name, or create it"
        case Cause.MISSING:
            return f"{place.uri}: there is nothing at {place.prefix} of the bucket {place.bucket}; correct the name"
        case Cause.REFUSED:
            key = "AWS_ACCESS_KEY_ID" in os.environ
            with_ = "with the given AWS_ACCESS_KEY_ID" if key else "without an AWS_ACCESS_KEY_ID"
            return (
                f"{place.uri} is refused by {endpoint} {with_} ({failure.said}); set AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY of a user who may {may} it, {_FROM}"
            )
        case Cause.ELSEWHERE:
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            return f"{place.uri}: the bucket is not in the region {region} ({failure.said}); set AWS_REGION to its own"
        case Cause.CHANGED:
            return f"{place.uri} has changed since the job began ({failure.said}); restore it, or create another job"
        case Cause.UNREADABLE_KEY:
            return (
                f"{place.uri}: below it is an object whose key can't be read ({failure.said}); rename or delete that "
                "one, or name another folder"
            )
        case Cause.UNREACHABLE:
            return (
                f"{place.uri}: no useful answer from {endpoint} ({failure.said}); see that it can be reached from "
                "here, and that AWS_ENDPOINT_URL, AWS_REGION and the credentials are set"
            )
