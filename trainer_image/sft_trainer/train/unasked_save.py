"""When a run saves that was not told how often: what nobody has asked for takes little of its time."""

_SECONDS = 1800
_SHARE = 20


def is_due(*, seconds_since: float, save_seconds: float) -> bool:
    """`seconds_since` the last save, or the start; `save_seconds` that it took, 0 where there was none.

    Each half hour; less often where saving would take more than a twentieth of the time.
    """
    return seconds_since >= max(_SECONDS, _SHARE * save_seconds)
