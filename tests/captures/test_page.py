"""docs/measure/without-the-target.md: its example runs on the stored capture and prints what stands there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from support.printed import difference

import speceval

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "measure" / "without-the-target.md"
CAPTURE = ROOT / "results" / "reference" / "capture"


def test_the_example_prints_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    [(code, text)] = re.findall(
        r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "page", "exec"), {})
    assert difference(text, printed.getvalue()) is None


def test_the_stored_capture_is_small_and_whole() -> None:
    capture = speceval.read_capture(CAPTURE)
    assert len(capture.texts) == 24 and capture.manifest.bytes < 2_000_000
    assert capture.manifest.storage is not None and capture.manifest.storage.mean < 0.01
