"""Numbers in words, as every display and message has them."""


def duration_in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def bytes_moved(here: int, total: int) -> str:
    """`1.2 of 26.2 MB`, in the unit of the total."""
    unit, name = next(
        (u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes")) if total >= u or u == 1
    )
    digits = 1 if unit > 1 else 0
    return f"{here / unit:.{digits}f} of {total / unit:.{digits}f} {name}"
