"""What an engine is doing while it starts, which can take minutes: read in its log, told on a terminal or in a pipe."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.control import Control
from rich.segment import ControlType

from speceval.measure.output import Watch, output_to
from speceval.measure.runner import Progress
from speceval.protocol import RunSpec

if TYPE_CHECKING:
    from rich.console import Console

LOOK_SECONDS = 0.5
"""Between two looks into the log."""
PLAIN_SECONDS = 10.0
"""Between two lines where the output is no terminal."""

PHASES = (
    (r"Resolved architecture|Initializing a V\d LLM engine", "reading the configuration"),
    (r"Starting to load model", "loading the target"),
    (r"Loading drafter model", "loading the drafter"),
    (r"KV cache size|Available KV cache memory", "laying out the KV cache"),
    (r"Dynamo bytecode|Compiling a graph|torch\.compile takes|Cache the graph", "compiling"),
    (r"[Cc]apturing CUDA graphs|Capturing cudagraph", "capturing CUDA graphs"),
    (r"Warming up|Running autotun", "warming up"),
    (r"init engine \(", "nearly ready"),
)
"""What vLLM writes -> what it does then, until it writes something else of the kind."""
_SHARE = re.compile(r"(?:shards|graphs[^\n:]*):\s+(\d+)%")


def phase(log: str) -> str:
    """What the last lines of a log say that an engine does; "" if nothing is known."""
    found = ((match.start(), words) for pattern, words in PHASES for match in re.finditer(pattern, log))
    place, words = max(found, default=(0, ""))
    shares = _SHARE.findall(log, place)
    return f"{words or 'loading weights'}, {shares[-1]} %" if shares and shares[-1] != "100" else words


class OneLine:
    """A line that is written over on a terminal, and a line now and then elsewhere."""

    def __init__(self, console: Console, seconds: float = PLAIN_SECONDS) -> None:
        self._console, self._seconds = console, seconds
        self._last, self._written = time.monotonic(), False

    @property
    def over_written(self) -> bool:
        """Whether each text takes the place of the one before."""
        return self._console.is_terminal

    def say(self, text: str, now: bool = False) -> None:
        """Show this from now on; `now`: in a pipe too, whenever the last line was."""
        if self.over_written:
            self.clear()
            self._written = True
            shown = text[: max(self._console.width - 1, 1)]
            self._console.print(shown, end="", soft_wrap=True, highlight=False, markup=False)
        elif now or time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def keep(self, text: str) -> None:
        """Show a line that stays."""
        self.clear()
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def clear(self) -> None:
        """Leave an empty line to whoever writes next."""
        if self._written:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
            self._written = False


class Starting:
    """The display of an engine that starts."""

    def __init__(self, console: Console, engine: str) -> None:
        self._console, self._engine = console, engine
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, log: Path) -> None:
        """Tell from now on what the log says, with the time that has passed."""
        self.over()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, args=(log, self._over), name="signs of life", daemon=True)
        self._thread.start()

    def over(self) -> None:
        """The engine is up, or has failed: say no more."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    @contextmanager
    def log(self, path: Path) -> Iterator[None]:
        """`output_to` for an engine that starts now."""
        with output_to(path):
            self.begin(path)
            try:
                yield
            finally:
                self.over()

    def until(self, watch: Watch) -> Watch:
        """The same display of progress, which takes over from this one."""

        @contextmanager
        def watching(progress: Progress, spec: RunSpec) -> Iterator[Callable[[], None]]:
            self.over()
            with watch(progress, spec) as changed:
                yield changed

        return watching

    def _tell(self, log: Path, over: threading.Event) -> None:
        line, began = OneLine(self._console), time.monotonic()
        _, place = _read(log, 0)
        text = ""
        while not over.wait(LOOK_SECONDS):
            more, place = _read(log, place)
            text += more
            doing = phase(text)
            passed = int(time.monotonic() - began)
            line.say(f"starting {self._engine}{f': {doing}' if doing else ''} ({passed // 60}:{passed % 60:02d})")
        line.clear()


def _read(log: Path, place: int) -> tuple[str, int]:
    """What a log holds from a place on, and where that ends; nothing, if a refused run has taken its log with it."""
    try:
        with log.open(errors="replace") as file:
            file.seek(place)
            return file.read(), file.tell()
    except FileNotFoundError:
        return "", place
