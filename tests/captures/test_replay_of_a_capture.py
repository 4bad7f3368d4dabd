"""`speceval replay DIR`: kept_j of every place is what p and q say there, computed token by token."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from support import tiny

import speceval
from speceval.captures.folder import Text
from speceval.drafters import suffix
from speceval.store import REQUEST, read_run, recorded_columns

pytestmark = pytest.mark.slow


K = 3
LOGITS: dict[str, tiny.DraftLogits] = {
    "eagle": tiny.eagle_logits,
    "eagle3": tiny.eagle3_logits,
    "narrow": tiny.eagle3_logits,
    "medusa": tiny.medusa_logits,
    "mlp_speculator": tiny.mlp_logits,
    "mtp": tiny.mtp_logits,
    "draft_model": tiny.draft_model_logits,
}
METHOD = {"narrow": "eagle3"}


def expected(
    draft: str, text: Text, heat: float, top_k: int, top_p: float, greedy: bool, truncated: bool
) -> np.ndarray:
    """kept [places, K] of a text, each place by itself and each draft from the checkpoints' own forward passes."""
    target, drafter = tiny.load(Path("target")), tiny.load(Path(draft))
    tokens = torch.tensor([text.tokens])
    kept = np.full((text.places, K), np.nan)
    for place in range(text.places):
        start = text.prompt + 1 + place  # tokens that are out
        for j in range(min(K, len(text.tokens) - start)):
            due = text.tokens[start + j]
            q_logits = LOGITS[draft](target, drafter, tokens[:, :start], tokens[:, start : start + j])[0]
            if greedy:
                kept[place, j] = float(int(q_logits.argmax()) == due)
                continue
            q = tiny.distribution(q_logits, heat, *((top_k, top_p) if truncated else ()))
            p = tiny.distribution(tiny.target_forward(target, tokens[:, : start + j])[0][0, -1], heat, top_k, top_p)
            kept[place, j] = min(1.0, float(q[due] / p[due])) if p[due] > 0 else (1.0 if q[due] > 0 else 0.0)
    return kept


def kept(run: Path, text: Text) -> np.ndarray:
    steps = read_run(run).steps
    rows = np.logical_and.reduce([steps[name] == value for name, value in zip(REQUEST, text.key, strict=True)])
    return steps[rows][recorded_columns(K, ("kept",))].to_numpy()


def same_as_token_by_token(draft: str, heat: float, top_k: int = 0, top_p: float = 1.0, *options: str) -> None:
    greedy, truncated = "greedy" in options or heat == 0, "--no-draft-truncation" not in options
    for text in speceval.read_capture("cap").texts:
        wanted = expected(draft, text, heat, top_k, top_p, greedy, truncated)
        np.testing.assert_allclose(kept(Path("again"), text), wanted, atol=2e-5, err_msg=str(text.key))


def replayed(call, draft: str, *options: str) -> None:
    code, _, err = call(
        "replay",
        "cap",
        "--draft",
        f"./{draft}",
        "--method",
        METHOD.get(draft, draft),
        "--k",
        str(K),
        "--out",
        "again",
        *options,
    )
    assert code == 0, err


@pytest.mark.parametrize("draft", LOGITS)
def test_every_place_keeps_what_p_and_q_say_there(call, captured: Path, draft: str) -> None:
    replayed(call, draft)
    same_as_token_by_token(draft, 1.0)


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        ((0.7, 6, 0.8), ()),
        ((0.7, 6, 0.8), ("--no-draft-truncation",)),
        ((1.0, 0, 1.0), ("--drafting", "greedy")),
        ((0.0, 0, 1.0), ()),
    ],
    ids=["truncated", "q not truncated", "greedy drafts", "temperature 0"],
)
def test_temperature_and_truncation_are_those_of_the_texts(
    call, free: Callable[..., Path], sampling: tuple[float, int, float], options: tuple[str, ...]
) -> None:
    heat, top_k, top_p = sampling
    run = free("--temp", str(heat), "--top-k", str(top_k), "--top-p", str(top_p))
    assert call("capture", run, "-o", "cap")[0] == 0
    replayed(call, "narrow", *options)
    same_as_token_by_token("narrow", *sampling, *options)


def test_ngram_drafts_what_followed_the_first_such_n_gram(call, captured: Path) -> None:
    code, _, err = call(
        "replay", "cap", "--draft", "ngram", "--k", "3", "--out", "again", "--draft-arg", "prompt_lookup_min=1",
        "--draft-arg", "prompt_lookup_max=2"
    )  # fmt: skip
    assert code == 0, err
    steps = read_run(Path("again")).steps
    assert set(steps["drafted"]) > {0} and (steps["committed"] == 1).all()
    for text in speceval.read_capture("cap").texts:
        for place, row in enumerate(kept(Path("again"), text)):
            known = text.tokens[: text.prompt + 1 + place]
            drafts = looked_up(known)
            due = text.tokens[len(known) :][:K]
            wanted = [float(a == b) for a, b in zip(drafts, due, strict=False)]
            assert row[: len(wanted)].tolist() == wanted and np.isnan(row[len(wanted) :]).all()


class Memory:
    """In the place of Arctic Inference's: drafts what it knows best, the last tokens that it was told, backwards."""

    def __init__(self, **limits: int) -> None:
        self.limits, self.told, self.prompts = limits, [], []

    def start_request(self, name: int, prompt: list[int]) -> None:
        assert name == len(self.prompts)
        self.prompts.append(prompt)
        self.told.append([])

    def add_active_response(self, name: int, tokens: list[int]) -> None:
        assert name == len(self.told) - 1
        self.told[name] += tokens

    def speculate(self, name: int, known: list[int], max_spec_tokens: int, **limits: float) -> SimpleNamespace:
        assert limits == {"max_spec_factor": 1.0, "min_token_prob": 0.25}
        assert known == [*self.prompts[name], *self.told[name]][-self.limits["max_tree_depth"] :]
        return SimpleNamespace(token_ids=known[:-3:-1][:max_spec_tokens])

    def stop_request(self, name: int) -> None:
        assert name == len(self.told) - 1


def test_suffix_drafts_remember_what_was_answered_before_one_text_after_another(
    call, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories: list[Memory] = []

    def memory(**limits: int) -> Memory:
        memories.append(Memory(**limits))
        return memories[0]

    lines = [json.loads(line) for line in Path("cap/texts.jsonl").read_text().splitlines()]
    assert {line["conversation"]: line["order"] for line in lines} == {"0000": 0, "0001": 1, "0002": 2}
    turned = [json.dumps(line | {"order": 2 - line["order"]}) + "\n" for line in lines]
    Path("cap/texts.jsonl").write_text("".join(turned))  # asked the other way round
    monkeypatch.setitem(sys.modules, "arctic_inference", SimpleNamespace(__spec__=ModuleSpec("arctic_inference", None)))
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", SimpleNamespace(SuffixDecodingCache=memory))
    suffix = ("--draft", "suffix", "--k", "3", "--draft-arg", "suffix_decoding_min_token_prob=0.25")
    code, _, err = call("replay", "cap", *suffix, "--out", "again")
    assert code == 0, err
    by_conversation = {text.key[1:]: text for text in speceval.read_capture("cap").texts}
    asked = [by_conversation[key] for key in (("0002", 0, 1), ("0001", 0, 1), ("0000", 0, 1), ("0000", 0, 2))]
    assert memories[0].limits == {"max_tree_depth": 24, "max_cached_requests": 10_000}
    assert memories[0].prompts == [text.tokens[: text.prompt] for text in asked]
    assert memories[0].told == [text.tokens[text.prompt :] for text in asked]
    run = read_run(Path("again"))
    assert set(run.steps["drafted"]) == {2} and run.meta.fingerprint.drafting == "deterministic"
    assert run.meta.fingerprint.drafter["memory"] == "one text after another, as with --batch 1"
    for text in asked:
        for place, row in enumerate(kept(Path("again"), text)):
            start = text.prompt + 1 + place
            drafts, due = text.tokens[start - 2 : start][::-1], text.tokens[start : start + 2]
            assert row[: len(due)].tolist() == [float(a == b) for a, b in zip(drafts, due, strict=False)]


def test_turns_wait_their_turn_as_they_do_in_an_engine_of_one_request(captured: Path) -> None:
    """Two conversations are in hand; a second turn queues behind what waits."""
    asked = [text.key[1:] for text in speceval.read_capture("cap").one_by_one()]
    assert asked == [("0000", 0, 1), ("0001", 0, 1), ("0000", 0, 2), ("0002", 0, 1)]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("max_tree_depth=0", "max_tree_depth=0: not from 1 to"),
        ("max_tree_depth=2.5", "max_tree_depth=2.5: not a whole number"),
        ("min_token_prob=2", "min_token_prob=2: not from 0 to 1"),
        ("max_spec_factor=x", "max_spec_factor=x: not a number"),
        ("max_cached_requests=true", "max_cached_requests=True: not a whole number"),
        ("nothing=1", "suffix_decoding_nothing: has no meaning on a capture"),
        ("", "its memory is the package arctic-inference, which is not installed: pip install"),
    ],
)
def test_suffix_drafting_that_cannot_be_is_one_line(
    call, captured: Path, monkeypatch: pytest.MonkeyPatch, argument: str, says: str
) -> None:
    options = ("--draft-arg", f"suffix_decoding_{argument}") if argument else ()
    monkeypatch.setattr(suffix, "PACKAGE", "json" if argument else "no_such_package")
    code, _, err = call("replay", "cap", "--draft", "suffix", "--k", "3", *options, "--out", "again")
    assert code == 4 and says in err.splitlines()[-1] and not Path("again").exists()


def looked_up(tokens: list[int]) -> list[int]:
    for length in (2, 1):
        end = tokens[-length:]
        for start in range(len(tokens) - length):
            if tokens[start : start + length] == end:
                return tokens[start + length :][:K]
    return []


def test_it_is_a_replay_that_compare_and_check_take(call, captured: Path) -> None:
    both = ("--draft", "./eagle3,./narrow", "--method", "eagle3", "--k", "3", "--out", "runs", "--json")
    code, out, err = call("replay", "cap", *both)
    assert code == 0, err
    printed = json.loads(out)
    [first, second] = printed["runs"]
    assert printed["schema"] == 1
    assert first["problems"] == [] == second["problems"]
    assert "tau_committed" in first["suites"]["own"]
    assert call("compare", "runs/eagle3", "runs/narrow")[0] == 0
    assert call("validate", "runs")[0] == 0
    assert call("baseline", "runs/eagle3", "--texts", "-o", "base.json")[0] == 0
    code, out, err = call("check", "runs/eagle3", "--baseline", "base.json", "--json")
    assert code == 0 and json.loads(out)["on_these_texts"]["suites"][0]["change_percent"] == 0, err
    code, out, _ = call("replay", "cap", *both)
    assert code == 0 and json.loads(out)["runs"][0] == first  # a finished one is read back


def test_a_drafter_that_was_trained_on_is_not_given_its_old_numbers(call, captured: Path) -> None:
    replayed(call, "eagle3")
    before = kept(Path("again"), speceval.read_capture("cap").texts[0])
    tiny.write_eagle3(Path("eagle3"), Path("target"), seed=9)
    code, out, err = call("replay", "cap", "--draft", "./eagle3", "--method", "eagle3", "--k", "3", "--out", "again")
    assert (code, out) == (4, "") and "has changed since (draft.weights: sha256:" in err and err.count("\n") == 2
    np.testing.assert_array_equal(kept(Path("again"), speceval.read_capture("cap").texts[0]), before)


def test_drafters_of_one_name_in_two_folders_are_measured_apart(call, captured: Path) -> None:
    for folder in ("one", "two"):
        shutil.copytree("eagle3", f"{folder}/mine")
    both = ("--draft", "one/mine,two/mine", "--method", "eagle3", "--k", "3", "--out", "runs")
    assert call("replay", "cap", *both)[0] == 0
    assert [run.meta.spec.draft for run in map(read_run, (Path("runs/one/mine"), Path("runs/two/mine")))] == [
        "one/mine",
        "two/mine",
    ]


def heads(ids: slice):
    """MEDUSA as a trainer would write it, of some tokens alone."""
    weights = tiny.load(Path("medusa"))

    def draft(tokens: torch.Tensor, states, places: torch.Tensor) -> torch.Tensor:
        state = states.final.gather(1, places[..., None].expand(-1, -1, states.final.shape[-1]))
        x = [state + torch.nn.functional.silu(state @ weights[f"blocks.{j}.layers.0.weight"].T) for j in range(K)]
        return torch.stack([x[j] @ weights[f"lm_heads.{j}.weight"][ids].T for j in range(K)])

    return draft


def test_any_callable_is_evaluated_and_gives_the_numbers_of_the_replay(call, captured: Path) -> None:
    replayed(call, "medusa")
    found = speceval.evaluate(heads(slice(None)), "cap", K, 1.0)
    run = read_run(Path("again"))
    names = [*REQUEST, "step", *recorded_columns(K, ("kept",))]
    pd.testing.assert_frame_equal(found.steps[names], run.steps[names], check_dtype=False, atol=1e-6)
    assert found.tau().value == pytest.approx(speceval.Run.of(run).tau(definition="tau_committed").value, rel=1e-6)
    assert found.alpha is None and f"tau_committed {found.tau()}" in repr(found)


@pytest.mark.parametrize("ids", [slice(None), slice(3, 17)], ids=["all tokens", "some tokens"])
def test_overlap_and_divergence_are_those_of_every_place(captured: Path, ids: slice) -> None:
    chosen = range(tiny.VOCAB)[ids]
    found = speceval.evaluate(heads(ids), "cap", K, draft_ids=chosen, overlap=True)
    target, weights = tiny.load(Path("target")), tiny.load(Path("medusa"))
    alpha, divergence, count = np.zeros((3, K))
    for text in speceval.read_capture("cap").texts:
        tokens = torch.tensor([text.tokens])
        for start in range(text.prompt + 1, len(text.tokens)):
            for j in range(min(K, len(text.tokens) - start)):
                p = tiny.distribution(tiny.target_forward(target, tokens[:, : start + j])[0][0, -1], 1.0)[ids]
                logits = tiny.medusa_logits(target, weights, tokens[:, :start], tokens[:, start : start + j])[0]
                q = tiny.distribution(logits[ids], 1.0)
                share = p / p.sum()
                alpha[j] += float(torch.minimum(p, q).sum())
                divergence[j] += float((share * (share / q).log()).sum())
                count[j] += 1
    assert found.alpha == pytest.approx(alpha / count, abs=1e-5)
    assert found.kl == pytest.approx(divergence / count, abs=1e-5)
