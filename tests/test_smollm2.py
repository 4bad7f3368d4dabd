"""scripts/smollm2: what the stored drafters were trained on, and that training can be interrupted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from speceval import suites
from speceval.zoo.recipe import Recipe

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts" / "smollm2"
MOST = 6000
"""Prompts of the longest training; others have a part of them."""


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The modules of the folder, which import each other by their bare names."""
    pytest.importorskip("torch")
    names = ("prompts", "collect", "train", "overlap")
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in names:
            sys.modules.pop(name, None)


def shared(overlap: ModuleType, prompts: list[str], name: str, data_dir: Path | None) -> list[str]:
    """Prompts that have eight words in a row in common with a turn of the suite."""
    known = overlap.of_suites([name], data_dir)
    assert len(known) > 100 and overlap.GRAM == 8
    return [prompt for prompt in prompts if overlap.grams(prompt) & known]


def test_a_prompt_with_a_line_of_a_suite_would_be_seen(scripts: dict[str, ModuleType]) -> None:
    turn = suites.load("demo", None).conversations[0].turns[0]
    assert shared(scripts["overlap"], [f"Please: {turn}", "Something else"], "demo", None) == [f"Please: {turn}"]


def test_no_training_prompt_shares_eight_words_with_the_demo(scripts: dict[str, ModuleType]) -> None:
    assert shared(scripts["overlap"], scripts["prompts"].instructions(MOST), "demo", None) == []


@pytest.mark.parametrize("name", ["mt_bench", "humaneval", "gsm8k"])
def test_no_training_prompt_shares_eight_words_with_a_benchmark(
    scripts: dict[str, ModuleType], data_dir: Path, name: str
) -> None:
    assert shared(scripts["overlap"], scripts["prompts"].instructions(MOST), name, data_dir) == []


def test_the_answers_are_those_of_the_chunks_without_their_prompts(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    class Words:
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    lengths = torch.tensor([12, 3])
    chunk = {"tokens": torch.arange(15), "starts": torch.tensor([2, 1]), "lengths": lengths}
    save_file(chunk, tmp_path / "chunk-000.safetensors")
    said = list(scripts["overlap"].answers(tmp_path, Words()))
    assert said == ["2 3 4 5 6 7 8 9 10 11", "13 14"]
    assert [len(scripts["overlap"].grams(text)) for text in said] == [3, 0]


def test_prompts_are_different_the_same_each_time_and_a_shorter_list_is_a_prefix(
    scripts: dict[str, ModuleType],
) -> None:
    instructions = scripts["prompts"].instructions
    assert instructions(MOST)[:300] == instructions(300) and len(set(instructions(MOST))) == MOST
    assert instructions(300, seed=1) != instructions(300)


@pytest.fixture(params=["eagle3", "medusa", "mlp"])
def task(scripts: dict[str, ModuleType], tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A task of the real one's form at a hundredth of its size."""
    import torch
    from safetensors.torch import save_file

    recipe = Recipe(vocab_size=50, hidden_size=12, heads=3, draft_vocab_size=20, draft_intermediate_size=16, max_k=3)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(25, 40, (60,), generator=generator)
    size = int(lengths.sum())
    chunk = {
        "tokens": torch.randint(50, (size,), generator=generator),
        "streams": torch.randn(size, 36, generator=generator).bfloat16(),
        "final": torch.randn(size, 12, generator=generator).bfloat16(),
        "log_z": torch.full((size,), 6.0),
        "starts": torch.full((60,), 8),
        "lengths": lengths,
        "greedy": torch.zeros(60, dtype=torch.bool),
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "target").mkdir()
    save_file(chunk, tmp_path / "own" / "chunk-000.safetensors")
    weights = {"model.embed_tokens.weight": torch.randn(50, 12, generator=generator).bfloat16()}
    (tmp_path / "target" / "config.json").write_text('{"eos_token_id": 49}')
    save_file(weights | {"model.norm.weight": torch.ones(12)}, tmp_path / "target" / "model.safetensors")
    train = scripts["train"]
    return train.Task(train.Data.read(tmp_path / "own", recipe.max_k), tmp_path / "target", recipe, request.param)


def test_training_that_was_interrupted_ends_with_the_same_weights_and_curve(
    scripts: dict[str, ModuleType], task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    train = scripts["train"]
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    monkeypatch.setattr(train, "LOOK_EVERY", 3)

    def run(name: str) -> tuple[dict[str, Any], list[list[str]]]:
        (tmp_path / name).mkdir(exist_ok=True)
        drafter, curve = task.drafter(), train.Curve(tmp_path / name / "curve.csv", task.depth)
        train.train(task, drafter, "x", "lk_lambda", range(6), True, tmp_path / name, curve)
        return drafter.state_dict(), [row[:2] + row[3:] for row in curve.rows]  # the third column is time

    def keep_and_die(path: Path, step: int, *rest: Any) -> None:
        keep(path, step, *rest)
        if step == 4:
            raise RuntimeError("killed")

    keep = train.keep
    whole, curve = run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(train, "keep", keep_and_die)
        with pytest.raises(RuntimeError, match="killed"):
            run("parts")
    parts, resumed = run("parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert curve == resumed and [row[1] for row in curve] == ["3", "6"]


def test_another_training_does_not_go_on_from_what_is_there(
    scripts: dict[str, ModuleType], task: Any, tmp_path: Path
) -> None:
    from dataclasses import replace

    train = scripts["train"]

    def run(steps: range, cool: bool, loss: str = "kl") -> None:
        train.train(task, task.drafter(), "x", loss, steps, cool, tmp_path, train.Curve(tmp_path / "c.csv", task.depth))

    run(range(2), False)
    run(range(3), False)  # a longer warm-up begins as a shorter one does
    with pytest.raises(SystemExit, match=r"of another training \(loss kl, not tv\): name another OUT"):
        run(range(3), False, "tv")
    task.recipe = replace(task.recipe, seed=1)
    with pytest.raises(SystemExit, match="seed 0, not 1"):
        run(range(3), False)
    (tmp_path / "x.state").unlink()
    run(range(2), True)
    with pytest.raises(SystemExit, match="last step 2, not 4"):
        run(range(4), True)


def test_the_end_of_an_answer_can_be_drafted(task: Any) -> None:
    assert 49 in task.draft_ids.tolist() and len(task.draft_ids) == 20


def test_what_is_stored_is_what_was_trained_but_for_rounding(
    scripts: dict[str, ModuleType], task: Any, tmp_path: Path
) -> None:
    drafter = task.drafter()
    back = scripts["train"].store(task, drafter, tmp_path / "x.safetensors")
    assert task.look(back)[0] == pytest.approx(task.look(drafter)[0], abs=0.02)
    difference = max(
        float((a - b).detach().abs().max()) for a, b in zip(drafter.parameters(), back.parameters(), strict=True)
    )
    assert 0 < difference < 0.02


@pytest.mark.parametrize("task", ["mlp"], indirect=True)
def test_a_stored_mlp_speculator_drafts_as_a_checkpoint_what_it_drafted_in_training(
    scripts: dict[str, ModuleType], task: Any, tmp_path: Path
) -> None:
    import json

    import torch
    from safetensors.torch import load_file

    from speceval.catalog import packed
    from speceval.catalog.recognise import recognise
    from speceval.drafters import heads
    from speceval.drafters.base import States
    from speceval.drafters.heads import MLPSpeculator

    drafter = task.drafter()
    for learnt in (drafter.ln.bias, drafter.token.weight, drafter.out.weight):  # not symmetric, as they begin
        torch.nn.init.normal_(learnt, std=0.2)
    back = scripts["train"].store(task, drafter, tmp_path / "x.safetensors")
    facts = {"hidden_size": 12, "vocab_size": 50}
    (tmp_path / "target" / "config.json").write_text(json.dumps(facts))
    (tmp_path / "made").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packed, "MLP_HEADS", task.depth)
        packed.write_checkpoint(tmp_path / "x.safetensors", tmp_path / "target", tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert recognise(config, "made").method == "mlp_speculator" and config["n_predict"] == task.depth == 3
    weights = {name: values.float() for name, values in load_file(tmp_path / "made" / "model.safetensors").items()}
    assert packed.OWN_ROWS == heads.OWN_ROWS and config[heads.OWN_ROWS]
    made, plain = (
        MLPSpeculator({**config, heads.OWN_ROWS: alike}, dict(weights), task.depth) for alike in (True, False)
    )
    answers, anchors = task.draw(torch.Generator().manual_seed(1))
    batch, _, _ = task.batch(answers, anchors)
    states = States(batch.final.float(), {}, task)
    with torch.no_grad():
        trained = back(batch)
        as_checkpoint = torch.stack(list(made(batch.tokens, states, anchors)))
    spread = trained.std()
    assert (as_checkpoint[..., task.draft_ids] - trained).abs().max() < 0.05 * spread, "bfloat16 rounds by 0.4 %"
    outside = torch.ones(50, dtype=torch.bool)
    outside[task.draft_ids] = False
    assert as_checkpoint[..., outside].max() < -80, "no token outside the draft vocabulary is ever drafted"
    with torch.no_grad():
        torch.testing.assert_close(as_checkpoint, torch.stack(list(plain(batch.tokens, states, anchors))))
