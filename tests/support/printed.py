"""Compare printed results of two computations that may differ in a float's last digits.

Another processor adds in another order and has another `exp`. What a number was rounded to for printing then differs by
one in its last digit at most; words and whole numbers do not differ at all. A number that is itself rounding noise
("5e-10", the error of a finite difference) cannot be compared so: print what bounds it.
"""

from __future__ import annotations

import itertools
import re
from decimal import Decimal

# Not part of a word, a version or an address: those are text.
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]\d+)?(?!\w|\.\d)")
SAME = Decimal("1e-9")
"""Relative: two numbers that were not rounded for printing."""


def difference(stored: str, fresh: str) -> str | None:
    """Where two printed texts differ by more than the last digit of a rounded number; None if nowhere.

    How a table is set is left aside: blanks, line ends, the length of rules, and the name pandas has for a column of
    texts.
    """
    pairs = itertools.zip_longest(_pieces(stored), _pieces(fresh), fillvalue="")
    return next((f"{before!r} is now {now!r}" for before, now in pairs if not _same(before, now)), None)


def _pieces(text: str) -> list[str]:
    """Numbers, each by itself, and the words between them."""
    text = re.sub(r"\bdtype: \w+|\\$", "", text.replace("−", "-"), flags=re.MULTILINE)
    text = re.sub(r"([-=─━])\1+", r"\1", text)
    pieces, end = [], 0
    for number in NUMBER.finditer(text):
        pieces += [*text[end : number.start()].split(), number[0]]
        end = number.end()
    return pieces + text[end:].split()


def _same(before: str, now: str) -> bool:
    if not (NUMBER.fullmatch(before) and NUMBER.fullmatch(now)):
        return before == now
    a, b = (Decimal(text.replace(",", "")) for text in (before, now))
    if all(number.as_tuple().exponent == 0 for number in (a, b)):
        return a == b
    last_digit = min(Decimal((0, (1,), int(number.as_tuple().exponent))) for number in (a, b))
    return abs(a - b) <= max(last_digit, SAME * abs(a))
