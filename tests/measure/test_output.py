"""Where an engine's output goes: whatever writes it, into the file; and back to where it was after that."""

from __future__ import annotations

import gc
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from speceval.measure.output import output_to, terminal


class Notebook(io.StringIO):
    """A stream that is no descriptor."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def talk() -> None:
    print("print")
    print("stderr", file=sys.stderr)
    os.write(1, b"descriptor\n")
    subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    logging.getLogger("talk").warning("logger")


@contextmanager
def notebook() -> Iterator[tuple[Notebook, Notebook]]:
    """Standard streams that are no descriptors, and a logger that holds the first."""
    made = Notebook(), Notebook()
    handler = logging.StreamHandler(made[0])
    logging.getLogger("talk").addHandler(handler)
    try:
        with redirect_stdout(made[0]), redirect_stderr(made[1]):
            yield made
    finally:
        logging.getLogger("talk").removeHandler(handler)


def test_all_that_is_written_is_in_the_file_and_nothing_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with notebook() as streams, output_to(tmp_path / "log"):
        talk()
    assert sorted((tmp_path / "log").read_text().split()) == ["child", "descriptor", "logger", "print", "stderr"]
    assert [stream.getvalue() for stream in streams] == ["", ""] and capfd.readouterr() == ("", "")


def test_everything_is_as_it_was_after_an_error(tmp_path: Path) -> None:
    with notebook() as streams:
        with pytest.raises(ZeroDivisionError), output_to(tmp_path / "log"):
            1 / 0  # noqa: B018
        talk()
        assert (sys.stdout, sys.stderr) == streams
    assert streams[0].getvalue().split() == ["print", "logger"] and streams[1].getvalue() == "stderr\n"
    assert (tmp_path / "log").read_text() == ""


def test_a_log_handler_that_is_made_meanwhile_can_be_used_afterwards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with output_to(tmp_path / "log"):
        handler = logging.StreamHandler(sys.stdout)
    logger = logging.Logger("late")
    logger.addHandler(handler)
    logger.warning("late")
    assert capfd.readouterr() == ("late\n", "")
    del logger, handler
    gc.collect()
    os.write(1, b"still open\n")
    assert capfd.readouterr() == ("still open\n", "")


def test_progress_goes_where_standard_error_was_while_the_output_is_sent_away(tmp_path: Path) -> None:
    with notebook() as streams, terminal() as console, output_to(tmp_path / "log"):
        console.print("progress")
    assert streams[1].getvalue() == "progress\n" and (tmp_path / "log").read_text() == ""
