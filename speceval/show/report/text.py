"""Text from models and users, made safe to look at. HTML escaping is jinja2's; this is for what it leaves alone."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that reorder what stands around them."""

_SHOWN = (
    {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}  # U+2400 …: pictures of controls
    | {0x7F: "\u2421"}
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # lone surrogates: not writable as UTF-8
    | {ord(character): f"[U+{ord(character):04X}]" for character in BIDI}
)


def visible(value: Any) -> Any:
    """Strings with every control character shown as a sign: escapes, text direction, lone surrogates.

    Newlines and tabs stay. Anything but a plain string is handed back as it is.
    """
    return value.translate(_SHOWN) if isinstance(value, str) and not isinstance(value, Markup) else value


NAME = 120
"""Characters of a name that are shown."""


def cut(text: str, length: int = NAME) -> str:
    """At most `length` characters, with a note on what is left out."""
    return text if len(text) <= length else f"{text[:length]} … ({len(text) - length:,} more characters)"
