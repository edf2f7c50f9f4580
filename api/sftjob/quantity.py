"""Amounts as Kubernetes writes them, `500m`, `4` or `1.5Gi`, as numbers that can be compared."""

import re
from fractions import Fraction

_UNITS = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000**power) for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{unit: Fraction(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_AMOUNT = re.compile(r"([0-9.]+)([A-Za-z]*)")


def exact(amount: int | str) -> Fraction:
    """Of an amount that has the form `forms.QUANTITY`."""
    match = _AMOUNT.fullmatch(str(amount))
    assert match, amount
    return Fraction(match[1]) * _UNITS[match[2]]
