"""Exceptions that mean "your input is wrong": the CLI prints the message as one line and exits with 4, or 3."""

from __future__ import annotations

EXIT_NOT_COMPARABLE = 3
EXIT_BAD_INPUT = 4
EXIT_OWN_FAULT = 70
"""Nobody expected it: no verdict, and nothing that the user did."""
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
"""128 + the signal's number."""


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
