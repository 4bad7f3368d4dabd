"""Exceptions that mean "your input is wrong": the CLI prints the message as one line and exits with 4, or 3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

EXIT_NOT_COMPARABLE = 3
EXIT_BAD_INPUT = 4
EXIT_OWN_FAULT = 70
"""Nobody expected it: no verdict, and nothing that the user did."""
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
"""128 + the signal's number."""


def meant(
    typed: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6, says: Mapping[str, str] | None = None
) -> str:
    """The end of a message about an unknown name: "; did you mean A or B?", at most so many; empty if none is near.

    Case, and hyphens for underscores, count for nothing. cutoff: how near, from 0 to 1 (`difflib.get_close_matches`).
    says: what is said in place of a known name.
    """
    plain = {_plain(name): (says or {}).get(name, name) for name in known}
    close = get_close_matches(_plain(typed), plain, n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(dict.fromkeys(plain[name] for name in close))}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and the mend, in one line."""


class DoesNotFit(UserError):
    """Fields of a request that do not go together, though each may with others: a sweep leaves such a run out."""

    def __init__(self, message: str, *fields: str) -> None:
        super().__init__(message)
        self.fields = fields
        """Their names."""


class NotComparable(UserError):
    """Runs whose protocols differ in more than what is compared; the message names the fields. Exit code 3."""
