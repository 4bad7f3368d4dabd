"""The one exception that means "your input is wrong": the CLI prints its message as one line and exits with 4."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and the mend, in one line."""
