"""scripts/gaussian.py and scripts/known_bad.py: figures of the docs that draw no run hold the numbers that they say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from speceval.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gaussian() -> ModuleType:
    return script("gaussian")


@pytest.fixture(scope="module")
def known_bad() -> ModuleType:
    return script("known_bad")


def test_gaussian_fits_have_the_published_overlaps_and_are_those_stored(gaussian: ModuleType) -> None:
    stored = json.loads((ROOT / "results" / "statistics" / "gaussian.json").read_text())
    fits = gaussian.fits()
    assert {name: round(100 * fit["overlap"], 1) for name, fit in fits.items()} == gaussian.PUBLISHED
    assert stored["mixture"] == {name: list(values) for name, values in gaussian.MIXTURE.items()}
    for name, fit in fits.items():
        assert fit == pytest.approx(stored["fits"][name], abs=2e-5)


def test_each_gaussian_is_the_best_of_a_fine_grid_under_its_divergence(gaussian: ModuleType) -> None:
    x = np.linspace(-14, 14, 1401)
    p, width = gaussian.density(x), x[1] - x[0]
    assert p.sum() * width == pytest.approx(1, abs=1e-9)
    mean, deviation = np.meshgrid(np.linspace(-7, 7, 57), np.linspace(0.4, 6, 57))
    q = np.exp(-0.5 * ((x - mean[..., None]) / deviation[..., None]) ** 2) / deviation[..., None] / np.sqrt(2 * np.pi)
    log_p, log_q = np.log(p), np.log(np.maximum(q, 1e-300))
    grids = {
        "KL": (p * (log_p - log_q)).sum(-1) * width,
        "reverse KL": (q * (log_q - log_p)).sum(-1) * width,
        "TV": 1 - np.minimum(p, q).sum(-1) * width,
    }
    for name, fit in gaussian.fits().items():
        least = grids[name].min()
        assert least - 0.02 < fit["divergence"] < least + 1e-4, name


def test_heat_map_shows_every_cell_of_the_matrix(known_bad: ModuleType) -> None:
    rows = known_bad.read_rows(ROOT / "results" / "verify")
    figure = known_bad.draw(rows).figure
    shown = [text.get_text() for axis in figure.axes for text in axis.texts]
    biased = [row for row in rows if row["verdict"] == "biased"]
    assert biased and sum("✗" in text for text in shown) == len(biased)
    assert sum(text == "refused" for text in shown) == sum(row["verdict"] == "refused" for row in rows)
    for row in biased:
        assert f"{row['tv']:.3f} ✗" in shown


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "\x00\x01"])
def test_a_matrix_that_is_none_is_one_line(known_bad: ModuleType, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "kernels.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match="no table of") as caught:
        known_bad.read_rows(tmp_path)
    assert "\n" not in str(caught.value)
