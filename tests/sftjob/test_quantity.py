"""Amounts as numbers."""

from fractions import Fraction

import pytest

from sftjob.quantity import exact


@pytest.mark.parametrize(
    ("amount", "number"),
    [
        (0, Fraction(0)),
        (4, Fraction(4)),
        ("007", Fraction(7)),
        ("500m", Fraction(1, 2)),
        ("0.5", Fraction(1, 2)),
        ("1.5k", Fraction(1500)),
        ("1M", Fraction(1_000_000)),
        ("2G", Fraction(2_000_000_000)),
        ("1T", Fraction(10**12)),
        ("1P", Fraction(10**15)),
        ("1E", Fraction(10**18)),
        ("1Ki", Fraction(1024)),
        ("1.5Gi", Fraction(1_610_612_736)),
        ("1Mi", Fraction(1_048_576)),
        ("1Ti", Fraction(1_099_511_627_776)),
        ("1Pi", Fraction(1_125_899_906_842_624)),
        ("1Ei", Fraction(1_152_921_504_606_846_976)),
        ("12345678901234567890123456789.1Ei", Fraction(123456789012345678901234567891 * 2**60, 10)),
    ],
)
def test_an_amount_is_read_exactly_as_kubernetes_reads_it(amount: int | str, number: Fraction) -> None:
    assert exact(amount) == number
