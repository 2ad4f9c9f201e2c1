"""Text of quantities."""

import math

import pytest

from autopar.units import bytes_text, gbit_per_s, parse_bytes, rate_text, seconds_text


def test_texts():
    assert [seconds_text(s) for s in (1.234, 0.9994, 1e-10, -0.5, math.inf)] == [
        "1.23 s", "999 ms", "0.1 ns", "-500 ms", "unlimited",
    ]  # fmt: skip
    assert [bytes_text(b) for b in (1023, 1024, 16 * 2**30, 5 * 2**40)] == ["1023 B", "1 KiB", "16 GiB", "5 TiB"]
    assert rate_text(312e12, "FLOP/s") == "312 TFLOP/s"
    assert gbit_per_s(400) == 50e9


@pytest.mark.parametrize(
    ("text", "nbytes"), [("0", 0), ("1KiB", 1024), ("80gb", 80e9), (" 2e9 B ", 2e9), ("1.5k", 1500)]
)
def test_parse_bytes(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 parsec", "1..5", "nan"])
def test_parse_bytes_refuses(text):
    with pytest.raises(ValueError, match="size in bytes"):
        parse_bytes(text)
