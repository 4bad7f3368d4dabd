"""`speceval.tune` and `speceval tune`, on an engine of known acceptance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import speceval
from speceval import UserError
from speceval.cli import app
from speceval.measure import tune as bursting

ASKED: dict[str, Any] = {"engine": "simulated", "max_tokens": 8, "confirm": False, "bursts": 3}


def test_every_drafter_k_and_batch_is_told_beside_the_target_alone(tmp_path: Path) -> None:
    tuned = speceval.tune(
        "zoo", ["kl-eagle3", "lk-eagle3"], batches=(1, 2), ks=(1, 3), out=tmp_path, plot=tmp_path / "h.png", **ASKED
    )
    told = {(rate.setting.draft, rate.setting.k, rate.batch) for rate in tuned.rates}
    drafted = {(draft, k, batch) for draft in ("kl-eagle3", "lk-eagle3") for k in (1, 3) for batch in (1, 2)}
    assert told == drafted | {("none", 0, 1), ("none", 0, 2)}
    stored = json.loads((tmp_path / "tune.json").read_text())
    assert stored == tuned.as_json() and (tmp_path / "h.png").stat().st_size > 1000
    assert tuned.best(2).batch == 2
    with pytest.raises(UserError, match="batch 3: was not tried"):
        tuned.best(3)


def test_without_ks_each_drafter_goes_as_far_as_it_can(tmp_path: Path) -> None:
    tuned = speceval.tune("zoo", ["kl-eagle3"], batches=(1,), out=tmp_path, **ASKED)
    assert [rate.setting.k for rate in tuned.rates] == [*range(1, 9), 0]


def test_bursts_differ_in_their_prompts_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    measure = bursting.measure

    def noted(*arguments: Any) -> Any:
        seen.append(measure(*arguments))
        return seen[-1]

    monkeypatch.setattr(bursting, "measure", noted)
    speceval.tune("zoo", ["kl-eagle3"], batches=(8,), ks=(2,), out=tmp_path, **ASKED)
    found = seen[0][bursting.Setting("kl-eagle3", 2)]
    keys = [tuple(row) for table in found.turns for row in table[["conversation", "seed", "turn"]].to_numpy()]
    assert len(keys) == len(set(keys)) and len({conversation for conversation, *_ in keys}) == 24


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--draft", "nobody", "--batch", "1"), "unknown drafter 'nobody'"),
        (("--draft", "kl-eagle3", "--batch", "0"), "--batch: batch sizes are whole numbers from 1"),
        (("--draft", "kl-eagle3", "--batch", "1", "--bursts", "2"), "--bursts 2: at least 3 of each"),
        (("--draft", "kl-eagle3", "--batch", "x"), "--batch x: not a list of whole numbers"),
        (("--draft", ",", "--batch", "1"), "--draft ,: holds no name"),
        (("--draft", "kl-medusa", "--batch", "1", "--k", "0"), "K must be at least 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    command = ["tune", "--target", "zoo", "--engine", "simulated", "--out", str(tmp_path / "out"), *arguments]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UserError) and says in str(done.exception)
    assert "\n" not in str(done.exception)


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    command = ["tune", "--target", "zoo", "--engine", "simulated", "--draft", "kl-eagle3", "--batch", "1", "--k", "2"]
    command += ["--max-tokens", "8", "--bursts", "3", "--no-confirm", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "Tokens per second" in done.stdout and "kl-eagle3" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["schema"] == 1 and len(told["rates"]) == 2
