"""What reaches a terminal, or the log of a CI: text from models and users that nothing obeys. Imports nothing heavy.

Names come from stored runs, baselines, suites and paths that others made. A terminal obeys control sequences, a reader
is misled by characters that reorder a line, a CI obeys lines such as `::error::` (GitHub) and `##vso[` (Azure).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from speceval.private import masked

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 80
"""Characters of a label that are shown."""
LONGEST_LINE = 10_000
"""Characters of a line that are shown: all of any that makes sense."""
UNCUT = 100_000
"""Columns of a table whose rows are to be lines, whatever they hold."""
PIPED = 160
"""Columns of a table that is not cut to a terminal's width."""

SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # control sequences: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # strings: titles, links
    r"|\x1b[ -/]*[0-~]"
)
"""What a terminal obeys (ECMA-48)."""

JOINER = "\u200d"
"""Binds emoji together; the one format character that is kept."""

UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode's categories of what has no picture: control, format (bidirectional too), surrogate, private, unassigned."""

_CI = re.compile(r"#(?=#\[|#vso\[)")
"""Where a command begins that a CI finds anywhere in a line."""


def clean(text: str, longest: int = LONGEST) -> str:
    """`text` as one harmless line: no control sequences, control, format or bidirectional control characters.

    Letters of every script stay. Cut to `longest` characters, with an ellipsis.
    """
    text = unicodedata.normalize("NFC", SEQUENCES.sub("", text[: 100 * longest]))
    text = " ".join(text.split())
    text = text[: 10 * longest]  # a megabyte costs nothing where a line of it is shown
    kept = "".join(c for c in text if c == JOINER or unicodedata.category(c) not in UNSEEN)
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def line(text: str) -> str:
    """One harmless line, whole, without secrets, that no CI takes for a command: for what is written as it is."""
    text = _CI.sub("# ", masked(clean(text, LONGEST_LINE)))
    return f": :{text[2:]}" if text.startswith("::") else text


def wrote(path: Path) -> None:
    """Say on standard error that a file was written."""
    size = path.stat().st_size
    told = f"{size:,} bytes" if size < 10_000 else f"{size / 1e3:,.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"
    say(f"wrote {path} ({told})")


def say(text: str) -> None:
    """One harmless line on standard error."""
    print(line(text), file=sys.stderr, flush=True)


class Harmless:
    """A text stream that lets nothing through but what can be read.

    Control and format characters go, tabs and line ends stay; a line that a CI would take for its command is broken by
    a blank; what the stream cannot encode is written as its escape. `console` writes its colours past it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._head = ""
        """Of the line that is being written: the first two characters that are no blanks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text, as far as it can be read."""
        self.trusted(readable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for each in lines:
            self.write(each)

    def trusted(self, text: str) -> int:
        """Write text whose control sequences are our own."""
        encoding = self.stream.encoding or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        self.stream.write("".join(self._without_commands(_CI.sub("# ", text))))
        return len(text)

    def _without_commands(self, text: str) -> Iterator[str]:
        place = 0
        for sequence in (*SEQUENCES.finditer(text), None):
            end = sequence.start() if sequence else len(text)
            for character in text[place:end]:
                if character == "\n":
                    self._head = ""
                elif len(self._head) < 2 and not character.isspace():
                    self._head += character
                    if self._head == "::":
                        yield " "
                yield character
            if sequence:
                yield sequence[0]
                place = sequence.end()


def readable(text: str) -> str:
    """`text` without what has no picture; tabs and line ends stay."""
    text = SEQUENCES.sub("", text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        if c in "\n\t" or c == JOINER or (kind := unicodedata.category(c)) not in UNSEEN
        else " " * kind.startswith("Z")
        for c in text
    )


def console(file: Any = None, piped: int = PIPED) -> Console:
    """Where tables and progress go: standard output, or `file`. Nothing that is printed is markup or an emoji's name.

    `piped`: columns where that is no terminal: output is not cut to a terminal's width there.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Readable(Console):
        """Prints what can be read, of lines no secrets; styles are ours."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(masked(each) if isinstance(each, str) else each for each in objects), **options)

        def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
            for text, style, control in super().render(*args, **options):
                yield Segment(text if control else readable(text), style, control)

    stream = sys.stdout if file is None else file
    guard = stream if isinstance(stream, Harmless) else Harmless(stream)
    return Readable(
        file=_Trusted(guard),  # type: ignore[arg-type]
        width=None if stream.isatty() else piped,
        markup=False,
        emoji=False,
        highlight=False,
        force_jupyter=False,
    )


class _Trusted:
    """The stream behind a guard, for what is readable already and styled."""

    def __init__(self, guard: Harmless) -> None:
        self.guard, self.write = guard, guard.trusted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guard, name)
