"""The notebooks: the executed files belong to the scripts beside them, and the scripts run on the stored results."""

from __future__ import annotations

import ast
import contextlib
import io
import runpy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import nbformat
import pandas
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from support.printed import difference

from speceval.show.plots import Drawn

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [script.stem for script in SCRIPTS]
LEAST_FIGURES = {"3_paper_against_runs": 1, "6_exact_tau_by_step": 1}
SECONDS = 120
"""Of processor time for all of them: what CI allows."""


@pytest.fixture(scope="module")
def notebooks() -> SimpleNamespace:
    """The functions of scripts/notebooks.py."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "notebooks.py"), run_name="notebooks"))


@dataclass
class Executed:
    """What a script leaves behind."""

    left: dict[str, Any]
    shown: list[str | None]
    """Text of each code cell's last expression; None where it has none, or shows a figure."""
    seconds: float
    """Of processor time."""


@pytest.fixture(scope="module")
def executed(notebooks: SimpleNamespace) -> Iterator[dict[str, Executed]]:
    """Every script, run cell by cell in this process and in the repository's root."""
    backend = matplotlib.get_backend()
    pyplot.switch_backend("Agg")
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(io.StringIO()),
        pandas.option_context("display.max_columns", 20, "display.width", 80),  # as in a notebook
    ):
        found = {script.stem: run(notebooks.convert(script).cells) for script in SCRIPTS}
    yield found
    pyplot.close("all")
    pyplot.switch_backend(backend)


def run(cells: list[Any]) -> Executed:
    """Run the code cells one after the other."""
    left: dict[str, Any] = {}
    shown: list[str | None] = []
    began = time.process_time()
    with matplotlib.rc_context():
        for cell in (cell for cell in cells if cell.cell_type == "code"):
            tree = ast.parse(cell.source.replace("%matplotlib inline\n", ""))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "cell", "exec"), left)
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), left) if last else None
            shown.append(None if value is None or isinstance(value, Figure) else getattr(value, "data", repr(value)))
    return Executed(left, shown, time.process_time() - began)


def test_there_are_six_notebooks_and_each_has_its_executed_file() -> None:
    assert [name[0] for name in NAMES] == list("123456")
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_executed_file_has_the_cells_of_its_script(script: Path, notebooks: SimpleNamespace) -> None:
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    cells = notebooks.convert(script).cells
    pairs = [[(cell.cell_type, cell.source) for cell in of] for of in (cells, stored.cells)]
    assert pairs[0] == pairs[1], f"run scripts/notebooks.py {script.stem}"


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_executed_file_is_whole_and_names_no_place_or_time(script: Path, notebooks: SimpleNamespace) -> None:
    path = script.with_suffix(".ipynb")
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= notebooks.LARGEST
    stored = nbformat.reads(text, as_version=4)
    nbformat.validate(stored)
    assert stored.metadata == notebooks.METADATA
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(cell.metadata for cell in stored.cells)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    images = sum("image/png" in output.get("data", {}) for output in outputs)
    assert images >= LEAST_FIGURES.get(script.stem, 2)
    for place in ("/work/", "/home/", "/Users/", "/tmp/", "C:\\\\"):
        assert place not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_script_runs_on_the_stored_results_and_draws(name: str, executed: dict[str, Executed]) -> None:
    figures = [value.figure if isinstance(value, Drawn) else value for value in executed[name].left.values()]
    figures = list({id(figure): figure for figure in figures if isinstance(figure, Figure)}.values())
    assert len(figures) >= LEAST_FIGURES.get(name, 2)
    for figure in figures:
        assert figure.axes and all(axis.has_data() for axis in figure.axes)
        figure.savefig(io.BytesIO(), format="png", dpi=40)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_executed_file_shows_what_the_stored_results_give(script: Path, executed: dict[str, Executed]) -> None:
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    for cell, text in zip(code, executed[script.stem].shown, strict=True):
        data = next((output.data for output in cell.outputs if output.output_type == "execute_result"), {})
        shown = data.get("text/markdown") or data.get("text/plain", "")
        if "image/png" not in data:
            assert difference(shown, text or "") is None, f"run scripts/notebooks.py {script.stem}"


@pytest.mark.slow
def test_all_scripts_together_take_less_than_two_minutes(executed: dict[str, Executed]) -> None:
    assert sum(of.seconds for of in executed.values()) < SECONDS


@pytest.mark.slow
def test_gradients_of_notebook_4_are_those_of_the_losses_in_use(executed: dict[str, Executed]) -> None:
    torch = pytest.importorskip("torch")
    from speceval.zoo.losses import LOSSES

    left = executed["4_kl_tv_lk"].left
    p = torch.tensor(left["p"], dtype=torch.float64).reshape(1, -1)
    draft_ids = torch.arange(p.shape[1])
    names = {"KL": "kl", "TV": "tv", "LK-α": "lk_alpha", "LK-λ": "lk_lambda"}
    for spread in (0.0, 2.0):
        z = (spread * torch.linspace(-1, 1, p.shape[1], dtype=torch.float64)).reshape(1, -1).requires_grad_()
        for ours, theirs in names.items():
            (slope,) = torch.autograd.grad(LOSSES[theirs](p, z.log_softmax(-1), draft_ids).sum(), z)
            expected = left["gradient"](ours, left["p"], z.detach().numpy()[0])
            assert abs(slope.numpy()[0] - expected).max() < 1e-9
