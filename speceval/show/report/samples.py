"""A sample of a run's outputs, each token with how it came about: accepted, recovered, bonus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from speceval.estimate import books
from speceval.show.report.decode import Decode, decoder, gives, token_texts
from speceval.show.report.text import cut
from speceval.store import OUTPUTS, REQUEST, Key, StoredRun, read_lines
from speceval.store.tables import OutputLine

RULE = (
    "The first conversation of each suite (by id), and those with the lowest, the median and the highest tau of their "
    "own in the first run; of every run the same ones."
)
TOKENS = 400
"""Tokens shown of one turn."""
TURNS = 4
"""Turns shown of one conversation."""
CHARACTERS = 1000
"""Characters shown of a prompt, and of an answer that cannot be coloured."""
TOKEN_CHARACTERS = 200
"""Characters shown of one token."""

KINDS = {
    "accepted": "draft token that the target accepted",
    "recovered": "drawn by the target in place of the first rejected draft",
    "bonus": "drawn by the target after all drafts of the step were accepted",
    "prefill": "the answer's first token, drawn without drafts",
    "plain": "drawn in a step without drafts",
}
"""How a token came about, and what that means."""


@dataclass(frozen=True)
class Pick:
    """A conversation to show, and why."""

    key: Key
    tau: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """The committed tokens of one step."""

    title: str
    tokens: list[tuple[str, str]]
    """Kind (a key of `KINDS`) and text of each."""


@dataclass(frozen=True)
class Turn:
    """One question with its answer. `groups` is empty when the answer cannot be coloured; `note` says why."""

    user: str
    counts: dict[str, int]
    tau: float | None
    groups: list[Group]
    plain: str
    """The answer as it is, where `groups` holds no text of it."""
    note: str


def choose(turns: pd.DataFrame) -> list[Pick]:
    """Conversations (suite, id, seed) by `RULE`; each once, with all its reasons."""
    if turns.empty:
        return []
    totals = turns.groupby(REQUEST[:3], sort=False)[["steps", "accepted"]].sum()
    return picks(totals.index, (1 + totals["accepted"] / totals["steps"])[totals["steps"] > 0])


def picks(keys: pd.Index, taus: pd.Series) -> list[Pick]:
    """Of conversations (suite, id, seed), and the tau of those that have one, what `RULE` says."""
    own = taus.dropna().sort_values(kind="stable")
    reasons: dict[Key, list[str]] = {}
    for key in keys[~keys.get_level_values("suite").duplicated()]:
        reasons.setdefault(key, []).append(f"first of {key[0]}")
    if len(own):
        for name, place in (("lowest tau", 0), ("median tau", (len(own) - 1) // 2), ("highest tau", -1)):
            reasons.setdefault(own.index[place], []).append(name)
    return [Pick(key, float(own[key]) if key in own.index else None, tuple(why)) for key, why in reasons.items()]


def read_outputs(run: StoredRun, keys: Iterable[Key]) -> dict[Key, list[dict[str, Any]]] | None:
    """The rows of `outputs.jsonl` of these conversations, turn by turn; None when the run keeps none."""
    path = run.directory / OUTPUTS
    if not path.is_file():
        return None
    books.require_texts(run)
    found: dict[Key, list[dict[str, Any]]] = {key: [] for key in keys}
    for row in read_lines(path, kind=OutputLine):
        rows = found.get((row["suite"], row["conversation"], row["seed"]))
        if rows is not None:
            rows.append(row)
    return {key: sorted(rows, key=lambda row: row["turn"]) for key, rows in found.items()}


def gather(run: StoredRun, picks: Sequence[Pick]) -> dict[Key, list[Turn]] | None:
    """The picked conversations of a run, ready to show; a conversation that the run lacks is left out.

    None when the run keeps no outputs.
    """
    outputs = read_outputs(run, [pick.key for pick in picks])
    if outputs is None:
        return None
    decode = decoder(run.meta.fingerprint.target)
    steps = run.steps[run.steps["conversation"].isin([pick.key[1] for pick in picks])]
    by_turn = dict(iter(steps.groupby(REQUEST)))
    none = run.steps.iloc[:0]
    return {
        key: [make_turn(row, by_turn.get((*key, row["turn"]), none), decode) for row in rows[:TURNS]]
        for key, rows in outputs.items()
        if rows
    }


def make_turn(row: dict[str, Any], steps: pd.DataFrame, decode: Decode | None) -> Turn:
    """One row of outputs.jsonl with the rows of its steps, in order."""
    ids, output = row["token_ids"], row["output"]
    columns = (steps[name].tolist() for name in ("drafted", "accepted", "committed"))
    groups = step_kinds(list(zip(*columns, strict=True)))
    kinds = [kind for _, group in groups for kind in group]
    drafted = steps[steps["drafted"] > 0]
    tau = 1 + float(drafted["accepted"].mean()) if len(drafted) else None
    if len(kinds) != len(ids):
        note = f"not coloured: the steps commit {len(kinds)} tokens, the answer has {len(ids)}"
        return Turn(cut(row["user"], CHARACTERS), {}, tau, [], cut(output, CHARACTERS), note)
    shown, notes, readable = shown_texts(ids, output, decode)
    return Turn(
        user=cut(row["user"], CHARACTERS),
        counts={kind: kinds.count(kind) for kind in KINDS if kind in kinds},
        tau=tau,
        groups=_with_texts(groups, shown),
        plain="" if readable else cut(output, CHARACTERS),
        note="; ".join(notes),
    )


def shown_texts(ids: Sequence[int], output: str, decode: Decode | None) -> tuple[list[str], list[str], bool]:
    """What is shown of the first `TOKENS` tokens of an answer, what must be said of it, and whether it is text."""
    notes = []
    texts = None if decode is None or not gives(decode, ids, output) else token_texts(decode, ids[:TOKENS])
    if texts is None:
        notes.append("the run's tokenizer is not on this machine: token ids are coloured instead of text")
    if len(ids) > TOKENS:
        notes.append(f"the first {TOKENS} of {len(ids):,} tokens")
    shown = [cut(_line_ends(text), TOKEN_CHARACTERS) for text in texts or [f"{token} " for token in ids[:TOKENS]]]
    return shown, notes, bool(texts)


def step_kinds(steps: Iterable[tuple[int, int, int]]) -> list[tuple[str, list[str]]]:
    """Title and kinds of the tokens that each step (drafted, accepted, committed) leaves in the answer.

    The prefill's token comes first. A step emits its accepted tokens and one more; `committed` cuts that at the end.
    """
    groups = [("before the first step", ["prefill"])]
    for number, (drafted, accepted, committed) in enumerate(steps, start=1):
        last = "plain" if drafted == 0 else "bonus" if accepted == drafted else "recovered"
        title = f"step {number}: {accepted} of {drafted} accepted" if drafted else f"step {number}: no drafts"
        groups.append((title, (["accepted"] * accepted + [last])[:committed]))
    return groups


def _line_ends(text: str) -> str:
    """Line ends with a sign before them: they are tokens too."""
    return text.replace("\n", "↵\n")


def _with_texts(groups: list[tuple[str, list[str]]], texts: list[str]) -> list[Group]:
    """The groups that `texts` reach, with their texts."""
    found, rest = [], iter(texts)
    for title, kinds in groups:
        tokens = list(zip(kinds, rest, strict=False))
        if not tokens:
            break
        found.append(Group(title, tokens))
    return found
