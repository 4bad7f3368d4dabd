"""What the page shows of a replay: how its drafter does along the texts, place by place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from speceval.estimate import replay, texts
from speceval.show.report import samples
from speceval.show.report.decode import Decode, decoder, gives, token_texts
from speceval.show.report.text import cut
from speceval.store import OUTPUTS, REQUEST, Key, StoredRun, read_lines
from speceval.store.tables import OutputLine

KINDS = {
    "likely": "an accepted draft in two of three free runs along this text, or more",
    "open": "in one to two of three",
    "unlikely": "in less than one of three: the target draws it itself",
    "first": "the answer's first token, drawn without drafts",
}
"""How likely a token came as an accepted draft, and what that means."""
LIKELY, OPEN = 2 / 3, 1 / 3
STRETCH = 16
"""Tokens of a stretch whose expected steps are counted."""
WORST = 5
"""Stretches of a run, and places of a pair, that are listed."""
AROUND = 40
"""Characters shown on each side of a place."""


@dataclass(frozen=True)
class Place:
    """A stretch or a place of a text with what is to be said of it, and the text around."""

    where: str
    value: float
    near: tuple[str, str, str] | None
    """Text before, at and after the place; None where the run keeps no texts."""


def positions(run: StoredRun, suite: str, k: int) -> list[dict[str, Any]]:
    """Of j = 1 … K: `kept`, the mean of kept_j over all places; `conditional`, expected of the steps that reach j."""
    steps = run.suite(suite)[0]
    chances, rows = replay.survival(steps), []
    v = replay.starts(steps, chances) * (steps["drafted"] > 0).to_numpy()
    before = np.hstack([np.ones((len(steps), 1)), chances])
    for j in range(1, k + 1):
        kept = steps.get(f"kept_{j}", pd.Series(dtype=float))
        here = v * kept.notna().to_numpy() if len(kept) else np.zeros(len(steps))
        reached = float((here * before[:, j - 1]).sum()) if len(kept) else 0.0
        accepted_here = float((here * before[:, j]).sum()) if len(kept) else 0.0
        rows.append(
            {
                "kept": float(kept.mean()) if kept.notna().any() else None,
                "conditional": accepted_here / reached if reached > 0 else None,
            }
        )
    return rows


def choose(run: StoredRun) -> list[samples.Pick]:
    """Conversations as `samples.choose` does, by their own tau_committed."""
    if run.steps.empty:
        return []
    totals = replay.expected(run.steps).groupby(REQUEST[:3], sort=False)[["steps", "accepted"]].sum()
    return samples.picks(totals.index, 1 + totals["accepted"] / totals["steps"].where(totals["steps"] > 0))


def gather(run: StoredRun, picks: Sequence[samples.Pick]) -> dict[Key, list[samples.Turn]] | None:
    """The picked conversations with their tokens marked; None when the run keeps no texts."""
    outputs = samples.read_outputs(run, [pick.key for pick in picks])
    if outputs is None:
        return None
    decode, rows = decoder(run.meta.fingerprint.target), _by_turn(run)
    none = run.steps.iloc[:0]
    return {
        key: [_turn(row, rows.get((*key, row["turn"]), none), decode) for row in turns[: samples.TURNS]]
        for key, turns in outputs.items()
        if turns
    }


def accepted(steps: pd.DataFrame) -> NDArray[np.float64]:
    """Of each token after the first of one text [places]: the chance that a free run has it as an accepted draft."""
    chances = replay.survival(steps)
    v = replay.starts(steps, chances)
    found = np.zeros(len(steps))
    for j in range(1, chances.shape[1] + 1):
        found[j - 1 :] += (v * chances[:, j - 1])[: len(steps) - j + 1]
    return found


def _turn(row: dict[str, Any], steps: pd.DataFrame, decode: Decode | None) -> samples.Turn:
    ids, output = row["token_ids"], row["output"]
    asked = cut(row["user"], samples.CHARACTERS)
    if len(steps) != max(len(ids) - 1, 0):
        note = f"not marked: the replay has {len(steps)} places, the text {len(ids)} tokens"
        return samples.Turn(asked, {}, None, [], cut(output, samples.CHARACTERS), note)
    chances = accepted(steps)
    kinds = ["first", *(_kind(chance) for chance in chances)][: len(ids)]
    titles = ["before the first step", *(f"accepted draft: {chance:.2f}" for chance in chances)]
    shown, notes, readable = samples.shown_texts(ids, output, decode)
    totals = replay.expected(steps)[["steps", "accepted"]].sum()
    return samples.Turn(
        user=asked,
        counts={kind: kinds.count(kind) for kind in KINDS if kind in kinds},
        tau=1 + float(totals["accepted"] / totals["steps"]) if totals["steps"] > 0 else None,
        groups=[samples.Group(title, [(kind, text)]) for title, kind, text in zip(titles, kinds, shown, strict=False)],
        plain="" if readable else cut(output, samples.CHARACTERS),
        note="; ".join(notes),
    )


def _kind(chance: float) -> str:
    return "likely" if chance >= LIKELY else "open" if chance >= OPEN else "unlikely"


def hardest(run: StoredRun, suite: str) -> list[Place]:
    """Stretches of `STRETCH` tokens that need most steps, worst first; of each text one at most."""
    steps = run.suite(suite)[0]
    if steps.empty:
        return []
    rows = steps.assign(v=replay.starts(steps, replay.survival(steps)), block=(steps["step"] - 1) // STRETCH, tokens=1)
    sums = rows.groupby([*REQUEST, "block"], sort=False)[["v", "tokens"]].sum().reset_index()
    sums = sums[sums["tokens"] == STRETCH].sort_values("v", ascending=False, kind="stable")
    worst = sums.drop_duplicates(REQUEST).head(WORST)
    wanted = [(*row[:4], int(row[4]) * STRETCH + 1) for row in worst[[*REQUEST, "block"]].itertuples(index=False)]
    return [
        Place(f"{_name(key)}, tokens {key[4] + 1} to {key[4] + STRETCH}", float(v), near)
        for key, v, near in zip(wanted, worst["v"], _near(run, wanted, STRETCH), strict=True)
    ]


def lost(first: StoredRun, other: StoredRun, suite: str) -> list[Place]:
    """Places where `other` is expected to accept fewer tokens than `first`, worst first. Same texts."""
    base, new = first.suite(suite)[0], other.suite(suite)[0]
    keys = [*REQUEST, "step"]
    if len(base) != len(new) or not base[keys].reset_index(drop=True).equals(new[keys].reset_index(drop=True)):
        return []
    places = texts.worst_places(base, new)
    wanted = [(suite, place.conversation, place.seed, place.turn, place.token) for place in places]
    return [
        Place(f"{_name(key)}, after token {key[4]}", place.lost, near)
        for key, place, near in zip(wanted, places, _near(first, wanted, 1), strict=True)
    ]


def _name(key: tuple[Any, ...]) -> str:
    return f"{cut(str(key[1]))}, seed {key[2]}, turn {key[3]}"


def _near(run: StoredRun, wanted: Sequence[tuple[Any, ...]], length: int) -> Iterator[tuple[str, str, str] | None]:
    """The texts around tokens `at` … at + length - 1 of (suite, conversation, seed, turn, at)."""
    path = run.directory / OUTPUTS
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    if path.is_file():
        due = {key[:4] for key in wanted}
        for row in read_lines(path, kind=OutputLine):
            if (key := tuple(row[name] for name in REQUEST)) in due:
                lines[key] = row
    decode = decoder(run.meta.fingerprint.target) if lines else None
    for key in wanted:
        line = lines.get(key[:4])
        yield None if line is None else _cut_out(line["token_ids"], line["output"], decode, key[4], length)


def _cut_out(ids: list[int], output: str, decode: Decode | None, at: int, length: int) -> tuple[str, str, str]:
    """Text before, at and after some tokens; without the tokenizer where their share of the characters says."""
    if decode is not None and gives(decode, ids, output):
        parts = token_texts(decode, ids)
        before, here, after = ("".join(each) for each in (parts[:at], parts[at : at + length], parts[at + length :]))
    else:
        begin, end = (round(len(output) * place / max(len(ids), 1)) for place in (at, at + length))
        before, here, after = output[:begin], output[begin:end], output[end:]
    return before[-AROUND:], cut(here, samples.TOKEN_CHARACTERS), after[:AROUND]


def _by_turn(run: StoredRun) -> dict[tuple[Any, ...], pd.DataFrame]:
    return dict(iter(run.steps.groupby(REQUEST)))
