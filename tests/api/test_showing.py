"""`table`, `plot`, `report`, `export`, and how results show themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import speceval
from speceval.exactness import Report
from speceval.show import layouts, plots, render
from speceval.show.export import FORMATS

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "results" / "reference" / "demo"
KL, LK = (DEMO / f"{name}-eagle3-T1-probabilistic" for name in ("kl", "lk"))


@pytest.mark.parametrize("layout", list(layouts.LAYOUTS))
def test_a_table_is_what_the_command_writes_in_every_layout(layout: Any) -> None:
    found = speceval.table([KL, speceval.read_run(LK)], layout=layout)
    built = layouts.build(layout, [KL, LK])
    for name, write in render.FORMATS.items():
        assert found.text(name) == write(built) == speceval.table([KL, LK], layout=layout, format=name)  # type: ignore[call-overload]
    assert found.frame["value"].tolist() == [record["value"] for record in built.records]
    assert str(found) == found._repr_markdown_() == found.text("md")
    assert found._repr_html_() == found.text("html")


def test_one_run_a_folder_and_the_published_figures_go_into_a_table() -> None:
    assert len(speceval.table(LK).frame) > 0
    assert len(speceval.table(speceval.read_run(LK)).frame) == len(speceval.table(str(LK)).frame)
    assert set(speceval.table(DEMO).frame["drafter"]) >= {"kl-eagle3", "lk-eagle3"}
    assert not set(speceval.table("published", layout="paper-main").frame["source"]) & {"measured"}


@pytest.mark.parametrize("kind", list(plots.OF_RUNS))
def test_every_figure_is_drawn_written_and_shown(kind: Any, tmp_path: Path) -> None:
    drawn = speceval.plot([KL, LK], kind=kind, path=tmp_path / "new" / "figure.png")
    assert drawn.figure.axes and drawn.caption
    for picture in (drawn._repr_png_(), (tmp_path / "new" / "figure.png").read_bytes()):
        assert picture.startswith(b"\x89PNG")


def test_a_figure_without_a_path_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    speceval.plot(LK)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_and_its_path_given_back(tmp_path: Path) -> None:
    page = speceval.report([KL, LK], str(tmp_path / "new" / "report.html"))
    assert page == tmp_path / "new" / "report.html" and "lk-eagle3" in page.read_text()
    with pytest.raises(speceval.UserError, match="a directory: name the page"):
        speceval.report(LK, tmp_path)


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_shape_is_exported(kind: Any) -> None:
    assert "lk-eagle3" in speceval.export(LK, kind)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: speceval.table(LK, layout="round"), "^layout 'round': there is 'summary', "),  # type: ignore[call-overload]
        (lambda: speceval.table(LK, format="xml"), "^format 'xml': there is 'md', "),  # type: ignore[call-overload]
        (lambda: speceval.table([]), "^table: no runs"),
        (lambda: speceval.plot(LK, kind="pie"), "^kind 'pie': there is 'positions', "),  # type: ignore[arg-type]
        (lambda: speceval.plot([]), "^plot: no runs"),
        (lambda: speceval.plot(LK, path="figure.bmp"), "figure.bmp: figures are written as .png or .pdf"),
        (lambda: speceval.export(LK, "pdf"), "^kind 'pdf': there is 'model-card', "),  # type: ignore[arg-type]
    ],
)
def test_an_unknown_name_is_said_with_what_there_is(call: Any, says: str) -> None:
    with pytest.raises(speceval.UserError, match=says):
        call()


def verification() -> Report:
    facts = {"method": "eagle3", "k": 3, "vllm": "0.32.0", "runner": "V1", "device": "cpu"}
    asked = {"target": "t", "draft": "d", "temperature": 1.0, "samples": 100, "tokens": 8}
    return Report(asked, facts, [], "exact probabilities", [], 1e-9, 0.02, {})


RESULTS: dict[str, Any] = {
    "run": lambda: (speceval.read_run(LK), "position 1", "<run lk"),
    "comparison": lambda: (
        speceval.compare(KL, LK),
        "could have seen",
        "<comparison with kl-eagle3: lk-eagle3 on demo: 3",
    ),
    "check": lambda: (speceval.check(LK, KL), "INCONCLUSIVE at a margin", "<check: inconclusive at a margin of 2 %>"),
    "explanation": lambda: (speceval.explain(LK), "SGLang", "<explanation of "),
    "verification": lambda: (verification(), "continuations of up to", "<verification: not enough samples: "),
}


@pytest.mark.parametrize("name", list(RESULTS))
def test_a_result_shows_its_table_in_a_terminal_and_in_a_notebook_and_one_line_elsewhere(name: str) -> None:
    result, words, line = RESULTS[name]()
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(result)
    assert words in console.export_text()
    assert repr(result).startswith(line) and "\n" not in repr(result)
    if hasattr(result, "_repr_markdown_"):
        assert "### " in result._repr_markdown_()
    else:
        assert "<pre" in result._repr_mimebundle_([], [])["text/html"]
    assert json.dumps(result.as_json(), allow_nan=False)
