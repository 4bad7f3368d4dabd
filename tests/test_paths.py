"""One helper finds the data files, in a checkout and beside an installed package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from speceval import paths
from speceval.show import published
from speceval.suites.load import SUITES_DIR, names

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", paths.DATA)
def test_a_checkout_s_data_are_where_the_repository_has_them(name: str) -> None:
    assert paths.data_directory(name) == ROOT / paths.DATA[name]
    assert any(path.is_file() for path in paths.data_directory(name).iterdir())


def test_an_installed_package_s_own_data_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "speceval")
    (tmp_path / "suites").mkdir()
    assert paths.data_directory("suites") == tmp_path / "suites"
    (tmp_path / "speceval" / "data" / "suites").mkdir(parents=True)
    assert paths.data_directory("suites") == tmp_path / "speceval" / "data" / "suites"


def test_the_wheel_maps_all_of_it_to_where_the_helper_looks() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"] == {place: f"speceval/data/{name}" for name, place in paths.DATA.items()}
    assert {f"/{place}" for place in paths.DATA.values()} <= set(build["sdist"]["include"])


def test_suites_hold_data_alone_and_are_no_package() -> None:
    assert {"demo", "gsm8k", "humaneval", "mt_bench"} <= set(names())
    assert not list(SUITES_DIR.rglob("*.py"))
    assert not [
        path for path in (ROOT / "speceval" / "suites").iterdir() if path.suffix in (".yaml", ".rows", ".jsonl")
    ]


def test_the_published_figures_are_read_through_the_helper() -> None:
    assert published.load().rows == published.load(ROOT / "results" / "published").rows
