"""The comparison of printed results lets another processor's last digits pass, and nothing else."""

import pytest
from support.printed import difference


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        ("tau 2.467 ± 0.012", "tau 2.468 ± 0.011"),
        ("p 1.9e-05", "p 2.0e-05"),
        ("9.99e-05", "1.00e-04"),
        ("+0.0 %", "-0.0 %"),
        ("−3.3 [−6.6, −0.5]", "-3.3 [-6.5, -0.5]"),
        ("0.65", "0.6500000000000001"),
        ("39413.0000", "39413.0"),
        ("0.99", "1"),  # both by {:.2g}
        ("a   1\nb   2\nName: x, dtype: object", "a 1\nb 2\nName: x, dtype: str"),
        ("┏━━━┓ | --: | 9.99 |", "┏━━━━┓ | ---: | 10.00 |"),
    ],
)
def test_a_last_digit_and_the_setting_of_a_table_may_differ(stored: str, fresh: str) -> None:
    assert difference(stored, fresh) is None
    assert difference(fresh, stored) is None


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        ("tau 2.467", "tau 2.469"),
        ("tau 2.467 ± 0.012", "tau 2.467 ± 0.014"),
        ("p 1.9e-05", "p 1.9e-04"),
        ("-3.3", "3.3"),
        ("steps 1,921", "steps 1,922"),
        ("steps 1921", "steps 1921.4"),
        ("39413.0000", "39414.0000"),
        ("verdict pass 0.5", "verdict fail 0.5"),
        ("**2.47**", "2.47"),
        ("vLLM 0.32.0", "vLLM 0.32.1"),
        ("run k7-4b162f82cd52", "run k7-4b162f82cd53"),
        ("2.467 1.5", "2.467"),
        ("2.467", "2.467 n/a"),
        ("K=5", "K=6"),
        ("2.467", "nan"),
    ],
)
def test_a_wrong_number_and_a_wrong_word_are_seen(stored: str, fresh: str) -> None:
    assert difference(stored, fresh) is not None
    assert difference(fresh, stored) is not None
