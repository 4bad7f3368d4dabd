"""Replay: expectations along texts against enumeration, and against speculative sampling with a known law."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.records import altered, run_meta

from speceval.errors import NotComparable, UserError
from speceval.estimate import gate, replay, texts
from speceval.estimate.acceptance import undrafted_note
from speceval.measure.replay import INHERITED, source
from speceval.store import OUTPUTS, StoredRun, recorded_columns

NAN = float("nan")


def table(texts: list[np.ndarray], drafted: list[np.ndarray] | None = None) -> pd.DataFrame:
    """Steps of a replay, a request for each of `texts` (kept [rows, K]), two requests to a conversation.

    Row s emits token s of the text, so that position j of it is within the text where s + j <= rows.
    """
    frames = []
    for number, kept in enumerate(texts):
        rows, k = kept.shape
        inside = np.arange(rows)[:, None] + np.arange(1, k + 1) <= rows
        frame = pd.DataFrame(np.where(inside, kept, NAN), columns=recorded_columns(k, ("kept",)), dtype=np.float64)
        frame.insert(0, "step", np.arange(1, rows + 1))
        frame.insert(0, "drafted", k if drafted is None else drafted[number])
        for name, value in (("suite", "s"), ("conversation", f"c{number // 2}"), ("seed", number % 2), ("turn", 1)):
            frame.insert(0, name, value)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def paths(kept: np.ndarray) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """Every way to go through a text: its probability and its steps (start, drafts accepted within the text)."""
    rows, k = kept.shape

    def go(start: int) -> Iterator[tuple[float, list[tuple[int, int]]]]:
        if start >= rows:
            yield 1.0, []
            return
        most = min(k, rows - start)
        for accepted in range(most + 1):
            chance = float(np.prod(kept[start, :accepted]))
            if accepted < most:
                chance *= 1 - kept[start, accepted]
            for rest, steps in go(start + accepted + 1):
                yield chance * rest, [(start, accepted), *steps]

    return go(0)


def expectations(kept: np.ndarray) -> dict[str, Any]:
    """v [rows], and the expected steps, tokens committed, and accepted and drafted within the text [K]."""
    rows, k = kept.shape
    v, accepted, drafted, committed, total = np.zeros(rows), np.zeros(k), np.zeros(k), 0.0, 0.0
    for chance, steps in paths(kept):
        total += chance
        for start, count in steps:
            v[start] += chance
            accepted[:count] += chance
            drafted[: rows - start] += chance
            committed += chance * min(count + 1, rows - start)
    assert total == pytest.approx(1)
    return {"v": v, "steps": v.sum(), "accepted": accepted, "drafted": drafted, "committed": committed}


def check(texts: list[np.ndarray]) -> None:
    steps = table(texts)
    expected = [expectations(kept) for kept in texts]
    v = replay.starts(steps, replay.survival(steps))
    np.testing.assert_allclose(v, np.concatenate([text["v"] for text in expected]), atol=1e-12)

    def by_conversation(name: str) -> Any:
        return [sum(text[name] for text in expected[first : first + 2]) for first in range(0, len(texts), 2)]

    totals = replay.conversation_totals(steps)
    np.testing.assert_allclose(totals["steps"], by_conversation("steps"))
    np.testing.assert_allclose(totals["committed"], by_conversation("committed"))
    for j, sums in enumerate(replay.position_totals(steps)):
        np.testing.assert_allclose(sums["accepted"], [values[j] for values in by_conversation("accepted")], atol=1e-12)
        np.testing.assert_allclose(sums["drafted"], [values[j] for values in by_conversation("drafted")])
        np.testing.assert_allclose(
            sums["steps"], sums["drafted"]
        )  # every place drafts all that its text has tokens for


class TestAgainstEnumeration:
    @pytest.mark.parametrize("seed", range(10))
    def test_random_texts_of_different_lengths_at_once(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        k = int(rng.integers(1, 5))
        check([rng.random((int(rng.integers(1, 8)), k)) for _ in range(int(rng.integers(1, 6)))])

    @pytest.mark.parametrize("seed", range(3))
    def test_positions_that_are_certain_or_impossible(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        check([rng.choice([0.0, 0.5, 1.0], (rows, 3)) for rows in (1, 2, 5, 7)])

    def test_k_1_and_texts_of_one_and_two_rows(self) -> None:
        check([np.array([[0.3]]), np.array([[0.3], [0.6]]), np.array([[0.3], [0.6], [0.9]])])

    def test_nothing_kept_is_one_token_a_step_and_all_kept_is_k_plus_1(self) -> None:
        assert replay.conversation_totals(table([np.zeros((12, 3))])).iloc[0].tolist() == [12, 12]
        assert replay.conversation_totals(table([np.ones((12, 3))])).iloc[0].tolist() == [3, 12]
        assert replay.starts(table([np.ones((5, 1))]), np.ones((5, 1))).tolist() == [1, 0, 1, 0, 1]

    def test_tokens_committed_are_those_of_the_text(self) -> None:
        """Where every step drafts, whatever the drafter, each token is committed by exactly one step."""
        rng = np.random.default_rng(1)
        totals = replay.conversation_totals(table([rng.random((rows, 4)) for rows in (1, 30, 7, 200)]))
        assert totals["committed"].tolist() == pytest.approx([31, 207])

    @pytest.mark.parametrize("seed", range(5))
    def test_steps_without_drafts_are_left_out_with_their_token(self, seed: int) -> None:
        """They commit one token each, so what they leave is the text less the chance that they start a step."""
        rng = np.random.default_rng(seed)
        drafted = rng.choice([0, 3], 9)
        kept = np.where(drafted[:, None] > 0, rng.random((9, 3)), 0.0)
        steps = table([kept], [drafted])
        v = expectations(kept)["v"]
        totals = replay.conversation_totals(steps).iloc[0]
        assert totals["steps"] == pytest.approx(v[drafted > 0].sum())
        assert totals["committed"] == pytest.approx(9 - v[drafted == 0].sum())


def speculate(
    p: np.ndarray, q: np.ndarray, k: int, length: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """True speculative sampling of Markov laws p [V, V], q [k, V, V]: steps, acceptances of first drafts [count].

    A text is one token that is given (0) and `length` more.
    """
    state, done, steps, first = (np.zeros(count, int) for _ in range(4))
    while (active := done < length).any():
        steps += active
        alive, at = active.copy(), state.copy()
        for j in range(k + 1):
            alive &= done < length
            if j == k:
                token = draw(p[at], rng)
                go_on = np.zeros(count, bool)
            else:
                draft = draw(q[j, at], rng)
                go_on = rng.random(count) < p[at, draft] / q[j, at, draft]
                residual = np.maximum(p[at] - q[j, at], 0) + 1e-300
                token = np.where(go_on, draft, draw(residual / residual.sum(1, keepdims=True), rng))
            first += alive & go_on & (j == 0)
            at = np.where(alive, token, at)
            done += alive
            alive &= go_on
        state = at
    return steps, first


def draw(law: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.argmax(np.cumsum(law, axis=1) > rng.random((len(law), 1)) * law.sum(1, keepdims=True), axis=1)


def replayed(p: np.ndarray, q: np.ndarray, k: int, length: int, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """A replay's steps on texts that the target alone samples; each text is a request of its own conversation."""
    text = np.zeros((count, length + 1), int)
    for place in range(length):
        text[:, place + 1] = draw(p[text[:, place]], rng)
    before, token = text[:, :-1], text[:, 1:]
    kept = np.minimum(1, q[:, before, token] / p[before, token])  # of each place, as position j: [k, count, length]
    ahead = np.pad(kept, ((0, 0), (0, 0), (0, k)), constant_values=NAN)
    columns = np.stack([ahead[j, :, j : j + length] for j in range(k)], axis=-1).reshape(-1, k)
    frame = pd.DataFrame(columns, columns=recorded_columns(k, ("kept",)))
    names = np.repeat(np.arange(count), length)
    return frame.assign(
        suite="s", conversation=names, seed=0, turn=1, step=np.tile(np.arange(length), count), drafted=k
    )


def laws(k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """p [4, 4] and q [k, 4, 4], nearer to p at the first positions."""
    p, noise = rng.dirichlet(np.full(4, 0.7), (2, 4))
    far = np.linspace(0.3, 1, k)[:, None, None]
    return p, (1 - far) * p + far * noise


@pytest.mark.parametrize(("k", "length"), [(1, 9), (3, 2), (3, 12), (4, 7)])
def test_a_replay_has_the_mean_of_speculative_sampling_and_less_variance(k: int, length: int) -> None:
    """Steps, and acceptances of the first draft, per text. Fixed seed; |z| < 5 is a false alarm of 6e-7 each."""
    rng = np.random.default_rng(10 * k + length)
    p, q = laws(k, rng)
    count = 10_000
    steps, first = speculate(p, q, k, length, count, rng)
    table = replayed(p, q, k, length, count, rng)
    expected_steps = replay.conversation_totals(table)["steps"].to_numpy()
    expected_first = next(replay.position_totals(table))["accepted"].to_numpy()
    for free, expected in ((steps, expected_steps), (first, expected_first)):
        error = np.sqrt((free.var() + expected.var()) / count)
        assert abs(free.mean() - expected.mean()) < 5 * error
        assert expected.var() < free.var()


@pytest.mark.parametrize("bug", ["shifted position", "ratio upside down"])
def test_a_wrong_kept_moves_the_mean(bug: str) -> None:
    """What the test above protects from is seen by it: more than ten errors away."""
    rng = np.random.default_rng(42)
    p, q = laws(3, rng)
    steps, _ = speculate(p, q, 3, 12, 10_000, rng)
    table = replayed(p, q, 3, 12, 10_000, rng)
    names = recorded_columns(3, ("kept",))
    if bug == "shifted position":
        table[names] = table[[*names[1:], names[-1]]].to_numpy()
    else:
        table[names] = 1 - table[names]
    expected = replay.conversation_totals(table)["steps"].to_numpy()
    assert abs(steps.mean() - expected.mean()) > 10 * np.sqrt((steps.var() + expected.var()) / 10_000)


class TestSummary:
    def turns(self, steps: pd.DataFrame) -> pd.DataFrame:
        requests = steps.groupby(replay.REQUEST, sort=False).size().reset_index(name="rows")
        return requests.assign(output_tokens=requests["rows"] + 1)

    def test_values_are_those_of_the_totals(self) -> None:
        rng = np.random.default_rng(3)
        steps = table([rng.random((20, 3)) for _ in range(8)])
        found = replay.summarise(steps, self.turns(steps), 3)
        totals = replay.conversation_totals(steps)
        assert found["tau_committed"]["value"] == pytest.approx(totals["committed"].sum() / totals["steps"].sum())
        assert found["expected_steps"] == pytest.approx(totals["steps"].sum()) and found["text_tokens"] == 8 * 21
        assert [row["position"] for row in found["positions"]] == [1, 2, 3]
        assert found["tau_committed"]["low"] < found["tau_committed"]["value"] < found["tau_committed"]["high"]
        json.dumps(found, allow_nan=False)

    def test_texts_of_one_token_leave_nothing_to_measure_and_no_nan(self) -> None:
        """Nothing is drafted for a text that the prefill ends: the table has neither rows nor columns of a record."""
        steps = table([np.ones((1, 2))]).head(0).drop(columns=recorded_columns(2, ("kept",)))
        turns = pd.DataFrame([("s", "c0", 0, 1, 1)], columns=[*replay.REQUEST, "output_tokens"])
        found = replay.summarise(steps, turns, 2)
        assert found["tau_committed"]["value"] is None and found["expected_steps"] == 0
        assert [row["unconditional"] for row in found["positions"]] == [None, None]
        json.dumps(found, allow_nan=False)

    def test_a_step_with_drafts_that_lost_its_record_is_counted(self) -> None:
        """As if rejected, it would make the drafter look worse. One without drafts has no record to lose."""
        steps = table([np.full((6, 2), 0.5), np.full((6, 2), 0.5)])
        assert replay.unrecorded(steps) == 0
        steps.loc[7:9, recorded_columns(2, ("kept",))] = NAN
        assert replay.unrecorded(steps) == 3
        assert replay.unrecorded(steps.drop(columns=recorded_columns(2, ("kept",)))) == 12
        assert replay.unrecorded(steps.head(0)) == 0
        steps.loc[7, "drafted"] = 0
        assert replay.unrecorded(steps) == 2


class TestSource:
    def run(self, directory: Path, **changes: Any) -> StoredRun:
        asked = {"seeds": (0, 1), "suites": ("s",), "k": 2, **changes}
        meta = run_meta(**{f"spec__{name}": value for name, value in asked.items()})
        rows = [("a", 0, 1, [5, 6, 7]), ("a", 1, 1, [5]), ("b", 0, 1, [1, 2])]
        lines = [
            {"suite": "s", "conversation": c, "seed": s, "turn": t, "token_ids": ids, "user": "u", "output": "x"}
            for c, s, t, ids in rows
        ]
        (directory / OUTPUTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        turns = [
            dict(zip(replay.REQUEST, ("s", c, s, t), strict=True), output_tokens=len(ids)) for c, s, t, ids in rows
        ]
        return StoredRun(directory, meta, pd.DataFrame(turns), pd.DataFrame())

    def test_texts_and_what_is_inherited(self, tmp_path: Path) -> None:
        found = source(self.run(tmp_path))
        assert found["texts"] == {("s", "a", 0, 1): (5, 6, 7), ("s", "a", 1, 1): (5,), ("s", "b", 0, 1): (1, 2)}
        assert found.keys() == {"texts", "source", "replay", *INHERITED}
        assert found["seeds"] == [0, 1] and "k" not in found

    def test_the_hash_is_of_the_texts_alone_whatever_their_order(self, tmp_path: Path) -> None:
        run = self.run(tmp_path)
        before = source(run)["replay"]
        path = tmp_path / OUTPUTS
        path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
        assert source(run)["replay"] == before
        path.write_text(path.read_text().replace("[5, 6, 7]", "[5, 6, 8]"))
        assert source(run)["replay"] != before

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"replay": "abc"}, "is a replay itself"),
            ({"status": "running"}, "is unfinished"),
            ({"outputs": None}, "has no outputs.jsonl"),
        ],
    )
    def test_runs_that_cannot_be_replayed_are_refused(self, tmp_path: Path, change: dict[str, Any], says: str) -> None:
        run = self.run(tmp_path, **{name: value for name, value in change.items() if name == "replay"})
        if "status" in change:
            run = altered(run, **change)
        if "outputs" in change:
            (tmp_path / OUTPUTS).unlink()
        with pytest.raises(UserError, match=f"--replay .*{says}") as raised:
            source(run)
        assert "\n" not in str(raised.value)


def read_text(written_at: float, read_at: float, tokens: int, seed: int = 0) -> pd.DataFrame:
    """What a replay at one temperature records of a text drawn at another: laws of Zipf's shape, 300 tokens."""
    generator = np.random.default_rng(seed)
    sharpness = generator.uniform(0.5, 3, tokens)[:, None]
    logits = -sharpness * np.log(np.arange(1, 301))
    law = np.exp(logits / written_at)
    law /= law.sum(axis=1, keepdims=True)
    drawn = (law.cumsum(axis=1) > generator.random((tokens, 1))).argmax(axis=1)
    p = np.exp(logits / read_at)
    p /= p.sum(axis=1, keepdims=True)
    at = p[np.arange(tokens), drawn]
    rank = p.cumsum(axis=1)[np.arange(tokens), drawn] - at / 2
    return pd.DataFrame({"p_1": at, "rank_1": rank, "spread_1": (1 - (p**3).sum(axis=1)) / 12})


@pytest.mark.slow
def test_a_text_of_the_target_s_law_agrees_and_one_of_another_temperature_does_not() -> None:
    """z of the first is normal with a variance of 1 here, false alarm of both lines below 1e-6.

    A text at temperature 0.8 ranks lower: each of 40 replays of 4,000 of its tokens says so.
    """
    sound = np.array([replay.text_law(read_text(1, 1, 4000, seed))["z"] for seed in range(200)])
    assert abs(sound.mean()) < 5.4 / np.sqrt(200) and 0.6 < sound.var() < 1.6
    colder = [replay.text_law(read_text(0.8, 1, 4000, seed)) for seed in range(40)]
    assert all(law["agrees"] is False and law["z"] < 0 for law in colder)
    assert replay.text_law(read_text(1.25, 1, 4000))["z"] > 5


def test_a_tiny_shift_in_a_long_text_is_rounding_and_a_short_text_is_not_judged() -> None:
    long = pd.DataFrame({"p_1": 0.5, "rank_1": np.full(1_000_000, 0.502), "spread_1": 1 / 12})
    law = replay.text_law(long)
    assert law["z"] > 5 and law["agrees"] is True
    assert replay.text_law(long.assign(rank_1=0.51))["agrees"] is False
    assert replay.text_law(long.head(199))["agrees"] is None
    assert replay.text_law(long.drop(columns="p_1"))["z"] is None  # a replay of an earlier version


def test_tokens_that_the_target_cannot_emit_are_counted() -> None:
    steps = pd.DataFrame({"p_1": [0.5, 0, NAN, 0], "rank_1": [0.5, 1, NAN, 1], "spread_1": [0.1, 0.1, NAN, 0.1]})
    assert replay.text_law(steps) == {"tokens": 3, "impossible": 2, "z": None, "agrees": None}


def test_importing_it_needs_neither_torch_nor_vllm() -> None:
    import subprocess
    import sys

    code = (
        "import sys; import speceval.estimate.replay, speceval.estimate.rao_blackwell;"
        "print({'torch', 'vllm'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def two_replays(rng: np.random.Generator, error: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts of 200 places with a chance at each, and the same again with the target's log p off by `error`."""
    rows, k = 20 * 200, 3
    p = rng.uniform(0.05, 0.9, rows)
    q = rng.uniform(0.05, 0.9, (rows, k))
    due = np.minimum(np.arange(rows)[:, None] + np.arange(k), rows - 1)
    signs = rng.normal(size=rows)
    base = pd.DataFrame(
        {
            "suite": "s",
            "conversation": np.repeat([f"{n}" for n in range(20)], 200),
            "seed": 0,
            "turn": 1,
            "step": np.tile(np.arange(1, 201), 20),
            "drafted": k,
        }
    )
    frames = []
    for chance in (p, p * np.exp(error * signs)):
        kept = np.minimum(q / chance[due], 1)
        frames.append(base.assign(p_1=chance, **{f"kept_{j}": kept[:, j - 1] for j in (1, 2, 3)}))
    return frames[0], frames[1]


@pytest.mark.parametrize("error", [1e-6, 3e-2])
@pytest.mark.slow
def test_the_tolerance_for_rounding_is_measured_on_the_target_and_holds_what_it_does_to_tau(error: float) -> None:
    """It is 5 standard deviations and more: no change of 8 is above it, and it is not thirty times the largest."""
    changes, tolerances = [], []
    for seed in range(8):
        base, new = two_replays(np.random.default_rng(seed), error)
        found = texts.target_rounding(base, new)
        assert found is not None and found.mean == pytest.approx(0.8 * error, rel=0.1)
        changes.append(abs(texts.change(base, new)))
        tolerances.append(found.tolerance)
    assert max(np.array(changes) / tolerances) < 0.8
    assert max(tolerances) < 30 * max(changes)


def test_a_target_without_rounding_has_no_tolerance_and_one_without_chances_none_that_is_known() -> None:
    base, _ = two_replays(np.random.default_rng(0), 0.1)
    same = texts.target_rounding(base, base)
    assert same is not None and same.tolerance == 0.0
    assert texts.target_rounding(base, base.drop(columns="p_1")) is None
    [suite] = texts.check({"s": base}, {"s": base}, 0.001).suites
    assert suite.tolerance_percent == 0.0


def test_another_target_is_no_rounding() -> None:
    base, other = two_replays(np.random.default_rng(0), 0.3)
    with pytest.raises(NotComparable, match="that is no rounding but another target"):
        texts.check({"s": base}, {"s": other}, 0.001)


def test_replays_that_do_not_draft_everywhere_are_judged_by_all_decode_steps() -> None:
    """200 texts of 50 places: one drafter drafts one token at every tenth place and keeps it, another one everywhere
    and keeps it with chance 0.3. Of its own steps the first commits 2 tokens, the second 1.3.
    """
    texts_, places = 200, 50
    frame = pd.DataFrame(
        {
            "suite": "s",
            "conversation": np.repeat([f"c{i:03d}" for i in range(texts_)], places),
            "seed": 0,
            "turn": 1,
            "step": np.tile(np.arange(1, places + 1), texts_),
        }
    )
    at = frame["step"] % 10 == 0
    seldom = frame.assign(drafted=at.astype(int), kept_1=np.where(at, 1.0, np.nan))
    often = frame.assign(drafted=1, kept_1=0.3)
    taus = [replay.conversation_totals(each).sum() for each in (seldom, often)]
    assert [float(each["committed"] / each["steps"]) for each in taus] == pytest.approx([1.8, 1.3], abs=0.1)
    [better] = texts.check({"s": seldom}, {"s": often}, 0.001).suites
    assert better.verdict == "pass" and better.every_step
    assert better.base_tau == pytest.approx(50 / 46) and better.change_percent > 15
    [worse] = texts.check({"s": often}, {"s": seldom}, 0.001).suites
    assert worse.verdict == "fail" and worse.change_percent < -15 and len(worse.conversations) == texts.WORST
    counts = [{"s": texts.count(each, each)} for each in (seldom, often)]
    assert gate.check(*counts, 0.02).verdict == "pass" and gate.check(*counts[::-1], 0.02).verdict == "fail"
    assert undrafted_note(often) is None
    assert "9,000 of 10,000 places of the texts had no drafts" in str(undrafted_note(seldom))
