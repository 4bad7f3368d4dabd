"""Names that tell runs apart are the same in a report and in the pictures in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.records import altered
from support.report_runs import write_run

from speceval.show.labels import directory_names, labels
from speceval.show.plots import style
from speceval.show.report import build


def test_runs_get_names_that_tell_them_apart(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    assert labels([a]) == ["lk-eagle3"]
    assert labels([a, altered(a, spec__temperature=0.5)]) == ["lk-eagle3, T=1", "lk-eagle3, T=0.5"]
    assert labels([a, altered(a, spec__temperature=0.5)], leave_out=("temperature",)) == [
        "lk-eagle3 (a)",
        "lk-eagle3 (a)",
    ]
    assert labels([a, replace(a, directory=tmp_path / "c")]) == ["lk-eagle3 (a)", "lk-eagle3 (c)"]
    elsewhere = [replace(a, directory=tmp_path / machine / "results" / "a") for machine in ("x", "y")]
    assert labels(elsewhere) == ["lk-eagle3 (x/results/a)", "lk-eagle3 (y/results/a)"]
    assert labels([a, altered(a, spec__draft="x" * 90)], form=lambda part: part[:9]) == ["lk-eagle3", "x" * 9]


def test_names_that_a_cut_makes_equal_are_told_apart(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    drafts = [f"/models/{'x' * 60}{middle}{'y' * 90}/drafter" for middle in "AB"]
    pair = [replace(altered(a, spec__draft=draft), directory=tmp_path / draft[1:]) for draft in drafts]
    assert len(set(style.labels(pair))) == 2  # cut in the middle, where the names differ
    first, second = labels(pair, form=lambda part: part[:9])  # and so are their directories
    assert first.endswith(" #1") and second.endswith(" #2")


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("top_p", 0.9, ["lk-eagle3, top-p 1", "lk-eagle3, top-p 0.9"]),
        ("rejection", "block", ["lk-eagle3, standard verification", "lk-eagle3, block verification"]),
    ],
)
def test_a_report_names_its_runs_as_its_pictures_do(
    tmp_path: Path, field: str, value: object, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = write_run(tmp_path / "a")
    b = altered(a, **{f"spec__{field}": value})
    monkeypatch.setattr(build, "pictures", lambda *_, **__: ([], []))
    page = [one.label for one in build.gather([a, b])["shown"]]
    assert page == style.labels([a, b]) == labels([a, b])
    assert page == names


def test_directories_of_one_name_are_told_apart_by_what_is_above_them() -> None:
    assert directory_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert directory_names([Path("/a/x/run"), Path("/a/x/run")]) == ["run", "run"]
