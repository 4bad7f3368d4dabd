"""docs/start/python.md: its examples run and print what stands there; its reference has every public name."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.printed import difference
from test_docs import ROOT, script

import speceval
from speceval import engines

PAGE = ROOT / "docs" / "start" / "python.md"
BLOCK = re.compile(r"(<!-- engine -->\n)?^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the stored results, where runs drive a simulated engine."""
    monkeypatch.setitem(engines.BUILT_IN, "vllm", engines.BUILT_IN["simulated"])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(text: str) -> Iterator[tuple[str, str | None]]:
    """Each example with what the page says that it prints: None where it says nothing."""
    found = [(language, code) for _, language, code in BLOCK.findall(text)]
    for index, (language, code) in enumerate(found):
        if language == "python":
            after = found[index + 1] if index + 1 < len(found) else ("", "")
            yield code, after[1] if after[0] == "text" else None


def test_every_example_runs_and_prints_what_the_page_says(place: Path) -> None:
    names: dict[str, Any] = {}
    examples = list(blocks(PAGE.read_text()))
    assert len(examples) >= 10 and sum(text is not None for _, text in examples) >= 7
    for code, text in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "page", "exec"), names)
        if text is not None:
            assert difference(text, printed.getvalue()) is None, code
    assert {"figure.pdf", "report.html"} <= {path.name for path in place.iterdir()}


def test_the_examples_use_nothing_but_public_names() -> None:
    used = {name for code, _ in blocks(PAGE.read_text()) for name in re.findall(r"\bspeceval\.(\w+)", code)}
    assert used <= set(speceval.__all__)
    assert {"run", "read_run", "validate", "compare", "check", "table", "plot", "report", "export", "explain"} <= used


def test_the_reference_has_every_public_name_with_its_arguments() -> None:
    reference = script("docs_site").python()
    assert re.findall(r"^### (\w+)$", reference, re.MULTILINE) == speceval.__all__
    assert "    temperature: float,\n" in reference and "- `temperature`: of the target" in reference
    assert '    drafting: Literal["probabilistic", "greedy"] | None = None,' in reference.replace("'", '"')
    assert '- `tau(suite: str = "", definition: str = "tau") -> Estimate`: ' in reference.replace("'", '"')
    assert "Args:" not in reference and "{: " not in reference
