from datetime import timedelta

import pytest

from operations import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("-2s", -2),
        ("+2s", 2),
        (".5s", 0.5),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1m0.5s", 60.5),
    ],
)
def test_reads_go_notation(text: str, seconds: float) -> None:
    assert duration.parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("-", 'time: invalid duration "-"'),
        (".s", 'time: invalid duration ".s"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
        ("1 h", 'time: unknown unit " h" in duration "1 h"'),
    ],
)
def test_refuses_in_go_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        duration.parse(text)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (5400, "1h30m0s"), (1.5, "1.5s"), (0.02, "20ms"), (90, "1m30s"), (-1, "-1s"), (2e-6, "2µs")],
)
def test_writes_go_notation(seconds: float, text: str) -> None:
    assert duration.text(timedelta(seconds=seconds)) == text
    assert duration.parse(text) == timedelta(seconds=seconds)
