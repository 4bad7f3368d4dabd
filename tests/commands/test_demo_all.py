"""`speceval demo --all`: what it asks for, and its tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support.records import run_meta

import speceval
from speceval import Run, zoo
from speceval.commands.demo import everything
from speceval.estimate.acceptance import TURN_COLUMNS
from speceval.measure.job import Job, prepare

CHANCE = {"kl": 0.5, "tv": 0.3, "lk-alpha": 0.5, "lk": 0.55}
"""The made-up drafters: chance that a draft token is accepted, by loss."""


def made_up(job: Job) -> Run:
    """A run of 20 conversations with 100 steps each; two runs with equal chances are equal."""
    k, loss = job.spec.k, job.spec.draft.rsplit("-", 1)[0]
    accepted = (np.random.default_rng(0).random((2000, k)) < CHANCE[loss]).cumprod(axis=1).sum(axis=1)
    conversation = np.repeat([f"{i:02}" for i in range(20)], 100)
    steps = pd.DataFrame({"suite": "demo", "conversation": conversation, "seed": 0, "turn": 1})
    steps = steps.assign(step=steps.groupby("conversation").cumcount() + 1, drafted=k, accepted=accepted)
    steps["committed"] = steps["accepted"] + 1
    totals = steps.groupby("conversation")[["drafted", "accepted", "committed"]].sum().reset_index()
    turns = pd.DataFrame(0, index=totals.index, columns=TURN_COLUMNS)
    turns = turns.assign(suite="demo", category="", finish_reason="length", turn=1, steps=100)
    turns[["conversation", "drafted", "accepted"]] = totals[["conversation", "drafted", "accepted"]]
    turns["output_tokens"] = totals["committed"] + 1
    asked = {f"spec__{name}": value for name, value in job.spec}
    return Run(job.directory, run_meta(**asked), turns, steps)


def test_every_drafter_of_the_zoo_has_a_row() -> None:
    assert {everything.drafter(*key) for key in everything.plan()} == set(zoo.DRAFTERS)


def test_every_drafter_is_measured_at_the_papers_k_with_the_same_seeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs, _ = run_all(monkeypatch, tmp_path)
    assert len(jobs) == 40 == len({job.directory for job in jobs})
    k = {job.draft.method: job.spec.k for job in jobs}
    assert k == {"eagle3": 7, "medusa": 6, "mlp_speculator": 6, "mtp": 7, "draft_model": 7}
    sampled = [job.spec for job in jobs if job.spec.temperature == 1]
    assert {spec.drafting for spec in sampled} == {"probabilistic"}
    assert len({spec.seeds for spec in sampled}) == 1


def test_the_table_compares_each_loss_with_kl_of_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, text = run_all(monkeypatch, tmp_path)
    lines = [line for line in text.splitlines() if re.search(r"\d (±|\[)", line)]  # those with an interval
    by_loss = {label: [line for line in lines if f" {label} " in line] for label in everything.LOSSES.values()}
    assert all(len(found) == 5 for found in by_loss.values())
    assert not any("%" in line for line in by_loss["KL"])
    assert all("+0.0 % [+0.0, +0.0]" in line and "*" not in line for line in by_loss["LK-α"])
    assert all(" -" in line and "*" in line for line in by_loss["TV"])
    assert all(" +" in line and "*" in line for line in by_loss["LK-λ"])


def run_all(monkeypatch: pytest.MonkeyPatch, out: Path) -> tuple[list[Job], str]:
    """The jobs that `main` asks for, and what it prints."""
    jobs: list[Job] = []

    def run(target: str, draft: str, *, suites: list[str], progress: bool, **asked: Any) -> Run:
        jobs.append(prepare(target=target, draft=draft, suite_names=suites, **asked))
        return made_up(jobs[-1])

    monkeypatch.setattr(speceval, "train_zoo", lambda names: None, raising=False)
    monkeypatch.setattr(speceval, "run", run, raising=False)
    console = Console(record=True, width=160, quiet=False, file=(out / "printed").open("w"))
    everything.main(out, console)
    return jobs, console.export_text()
