"""The published figures are the source's own, with its oddities, and a run is held against the right one."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from support.records import run_meta

from speceval.catalog.schema import load_entries
from speceval.errors import UserError
from speceval.show import published
from speceval.store.schema import RunMeta
from speceval.suites.load import SUITES_DIR
from speceval.suites.schema import read_suite_file

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "published"


def meta(
    target: str = "gpt-oss-120b", draft: str = "lk-eagle3", suite: str = "mt_bench", dataset: str = "", **spec: Any
) -> RunMeta:
    pinned = read_suite_file(SUITES_DIR / "mt_bench.yaml").pinned
    assert pinned is not None
    asked = {"target": target, "draft": draft, "suites": (suite,), "k": 7, **spec}
    return run_meta(
        **{f"spec__{name}": value for name, value in asked.items()},
        **{f"fingerprint__suites__{suite}__dataset": dataset or pinned.dataset_hash},
    )


def test_all_222_figures_are_there_once() -> None:
    rows = published.load().rows
    places = {(r.target, r.architecture, r.setup, r.temperature, r.suite) for r in rows}
    assert len(rows) == len(places) == 222
    assert sum(row.speedup is not None for row in rows) == 186
    assert {row.suite for row in rows} == set(published.load().suites.values())


def test_the_figures_are_those_of_the_transcription(data_dir: Path) -> None:
    given = data_dir / "published_lk_losses.csv"
    assert (FOLDER / "lk_losses.csv").read_text().splitlines() == given.read_text().splitlines()


def test_means_over_suites_are_the_printed_ones_but_for_the_known_one() -> None:
    taus = defaultdict(list)
    for row in published.load().rows:
        taus[row.target, row.architecture, row.setup, f"{row.temperature:g}"].append(row.tau)
    with (FOLDER / "means.csv").open(newline="") as lines:
        printed = list(csv.DictReader(lines))
    assert len(printed) == 30
    wrong = []
    for row in printed:
        mine = taus[row["target"], row["drafter"], row["setup"], row["T"]]
        assert len(mine) == 3
        if f"{sum(mine) / 3:.2f}" != row["mean"]:
            wrong.append((row["target"], row["setup"], row["T"], f"{sum(mine) / 3:.2f}", row["mean"]))
    assert wrong == [("gpt-oss-20b", "KL", "0", "3.47", "3.46")]


def test_each_oddity_stands_at_the_figures_it_concerns() -> None:
    publication = published.load()
    marked = {(r.setup, r.suite, r.temperature): publication.notes(r) for r in publication.rows if publication.notes(r)}
    assert set(marked) == {("KL", "HumanEval", 0), ("ZK-8B", "GSM8K", 1)}
    assert "3.08" in marked["KL", "HumanEval", 0][0] and "3.07" in marked["KL", "HumanEval", 0][0]
    assert "3.21" in marked["ZK-8B", "GSM8K", 1][0]
    rows = {r.setup for r in publication.rows if publication.row_notes(r)}
    assert rows == {"RH-20B (dagger)", "ZK-235B (ddagger)", "LK-lambda eta=3"}
    mlp = [r for r in publication.rows if r.setup == "LK-lambda eta=3" and publication.row_notes(r)]
    assert {r.architecture for r in mlp} == {"MLP speculator"}
    means = {(r.target, r.setup, r.temperature) for r in publication.rows if publication.mean_notes(r)}
    assert means == {("gpt-oss-20b", "KL", 0)}


def test_every_catalog_drafter_finds_its_figures() -> None:
    suites = published.load().suites
    for entry in load_entries().values():
        for name, drafter in entry.drafters.items():
            if drafter.source == "stored":  # trained here: the paper has none of it
                continue
            for suite in suites:
                pinned = read_suite_file(SUITES_DIR / f"{suite}.yaml").pinned
                assert pinned is not None
                for temperature, drafting in ((0.0, "greedy"), (1.0, "probabilistic")):
                    run = meta(
                        entry.name, name, suite, pinned.dataset_hash,
                        k=drafter.k, temperature=temperature, drafting=drafting,
                    )  # fmt: skip
                    figure = published.repeated(run, suite)
                    assert figure is not None, (entry.name, name, suite, temperature)
                    assert (figure.setup, figure.temperature, figure.suite) == (
                        drafter.paper_setup, temperature, suites[suite],
                    )  # fmt: skip


def test_the_figure_is_the_papers() -> None:
    figure = published.repeated(meta(), "mt_bench")
    assert figure is not None and (figure.tau, figure.speedup, figure.setup) == (2.69, 1.48, "LK-lambda eta=3")


@pytest.mark.parametrize(
    "other",
    [
        {"k": 6},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"top_k": 20},
        {"drafting": "greedy"},
        {"draft": "mine"},
        {"target": "mine"},
        {"suite": "demo"},
        {"dataset": "another"},
    ],
)
def test_a_run_under_another_protocol_repeats_nothing(other: dict[str, Any]) -> None:
    run = meta(**other)
    assert published.repeated(run, next(iter(run.fingerprint.suites))) is None


@pytest.mark.parametrize(
    ("file", "old", "new", "parts"),
    [
        ("lk_losses.csv", "3.75,2.60", "0.75,2.60", ["lk_losses.csv: line 2", "tau"]),
        ("lk_losses.csv", "3.75,2.60", "x,2.60", ["lk_losses.csv: line 2", "tau"]),
        (
            "lk_losses.csv",
            "Llama-3.1-8B-Instruct,EAGLE-3,7,TV",
            "Llama-3.1-8B-Instruct,EAGLE-3,7,KL",
            ["a second figure"],
        ),
        ("source.yaml", "kind: published", "kind: other", ["source.yaml", "kind"]),
        ("source.yaml", "figures: lk_losses.csv", "", ["source.yaml", "figures"]),
        ("source.yaml", "decimals: 2", "decimals: [", ["source.yaml", "not YAML"]),
    ],
)
def test_a_damaged_folder_gets_one_line(tmp_path: Path, file: str, old: str, new: str, parts: list[str]) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        published.load(tmp_path)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts), caught.value
