"""Which outputs a report shows, and how each token of them came about."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from support.report_runs import write_run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from speceval.errors import UserError
from speceval.show.report import samples
from speceval.show.report.decode import decoder, token_texts
from speceval.show.report.text import cut, visible


def byte_tokenizer() -> Tokenizer:
    """One token per byte, as byte-level tokenizers spell bytes; and an end token 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def plain_decode(tokenizer: Tokenizer):
    return lambda ids, special=True: tokenizer.decode(list(ids), skip_special_tokens=not special)


def kinds(steps: list[tuple[int, int, int]]) -> list[list[str]]:
    return [group for _, group in samples.step_kinds(steps)][1:]


def test_a_step_leaves_its_accepted_tokens_and_a_recovered_one() -> None:
    assert kinds([(3, 2, 3)]) == [["accepted", "accepted", "recovered"]]
    assert kinds([(3, 0, 1)]) == [["recovered"]]


def test_a_step_that_accepts_every_draft_leaves_a_bonus_token_also_when_it_drafted_fewer_than_k() -> None:
    assert kinds([(3, 3, 4), (1, 1, 2)]) == [["accepted"] * 3 + ["bonus"], ["accepted", "bonus"]]


def test_a_step_cut_at_the_end_keeps_its_first_tokens_only() -> None:
    assert kinds([(3, 2, 2)]) == [["accepted", "accepted"]]
    assert kinds([(3, 3, 1)]) == [["accepted"]]


def test_a_step_without_drafts_leaves_a_plain_token_and_the_prefill_comes_first() -> None:
    assert kinds([(0, 0, 1)]) == [["plain"]]
    assert samples.step_kinds([]) == [("before the first step", ["prefill"])]


def test_tokens_and_steps_of_an_answer_are_in_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    picks = samples.choose(run.turns)
    for turns in samples.gather(run, picks).values():
        for turn in turns:
            assert sum(turn.counts.values()) == sum(len(group.tokens) for group in turn.groups)
            accepted = sum(kind == "accepted" for group in turn.groups for kind, _ in group.tokens)
            assert turn.tau == pytest.approx(1 + accepted / (len(turn.groups) - 1))


def test_an_answer_that_its_steps_do_not_explain_is_not_coloured() -> None:
    steps = pd.DataFrame({"drafted": [3], "accepted": [2], "committed": [3]})
    row = {"user": "q", "output": "abc", "token_ids": [1, 2, 3]}
    turn = samples.make_turn(row, steps, None)
    assert turn.groups == [] and turn.plain == "abc"
    assert turn.note == "not coloured: the steps commit 4 tokens, the answer has 3"


def test_picks_are_the_first_of_each_suite_and_the_extremes_of_tau(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", suites=("demo", "other"), conversations=9, seeds=1)
    own = 1 + run.turns["accepted"] / run.turns["steps"]
    reasons = {pick.key: set(pick.reasons) for pick in samples.choose(run.turns)}
    assert "first of demo" in reasons["demo", "0000", 0] and "first of other" in reasons["other", "0000", 0]
    named = {reason: pick for pick in samples.choose(run.turns) for reason in pick.reasons}
    assert named["lowest tau"].tau == own.min() and named["highest tau"].tau == own.max()
    assert (own < named["median tau"].tau).sum() <= len(own) / 2 <= (own <= named["median tau"].tau).sum()
    assert len(reasons) == len(samples.choose(run.turns))


def test_picks_of_runs_without_turns_or_without_drafts_are_made_without_a_tau(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert samples.choose(run.turns.iloc[:0]) == []
    assert [pick.reasons for pick in samples.choose(run.turns.assign(steps=0, accepted=0))] == [("first of demo",)]


def test_every_token_gets_its_own_text_and_characters_of_many_tokens_the_last_one_the_character() -> None:
    tokenizer = byte_tokenizer()
    text = "a é 😀 b"
    ids = tokenizer.encode(text).ids
    texts = token_texts(plain_decode(tokenizer), ids)
    assert len(texts) == len(ids) > len(text)
    assert "".join(texts) == text
    assert texts[ids.index(tokenizer.token_to_id("a"))] == "a"
    assert [t for t in texts if t] == list(text)


def test_a_space_that_a_tokenizer_drops_at_the_start_of_a_text_stays_inside_it() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2}, "▁a"))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([1]) == "b"
    assert token_texts(plain_decode(tokenizer), [0, 1, 2, 1]) == ["a", " b", "c", " b"]


def test_an_answer_cut_inside_a_character_ends_with_a_replacement_sign() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("ab😀").ids[:-1]
    assert "".join(token_texts(plain_decode(tokenizer), ids)).startswith("ab")
    assert token_texts(plain_decode(tokenizer), ids)[-1] != ""


def test_a_target_directory_gives_the_texts_with_their_special_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    (tmp_path / "target").mkdir()
    tokenizer.save(str(tmp_path / "target" / "tokenizer.json"))
    run = write_run(
        tmp_path / "run",
        target=str(tmp_path / "target"),
        token_ids=lambda row, n: [*range(65, 65 + n - 1), 256],
        output=lambda ids: tokenizer.decode(ids),
    )
    turns = samples.gather(run, samples.choose(run.turns))
    shown = [text for turn in next(iter(turns.values())) for group in turn.groups for _, text in group.tokens]
    assert shown[-1] == "</s>"
    assert not next(iter(turns.values()))[0].plain


def test_another_tokenizer_than_the_runs_colours_ids_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    byte_tokenizer().save(str(tmp_path / "target" / "tokenizer.json"))
    run = write_run(tmp_path / "run", target=str(tmp_path / "target"))
    turn = next(iter(samples.gather(run, samples.choose(run.turns)).values()))[0]
    assert turn.groups[0].tokens == [("prefill", "0 ")] or turn.groups[0].tokens[0][1].strip().isdigit()
    assert "token ids are coloured" in turn.note and turn.plain


def test_no_tokenizer_at_hand_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEVAL_CACHE", str(tmp_path))
    assert decoder(write_run(tmp_path / "run").meta.fingerprint.target) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert decoder(write_run(tmp_path / "local", target=str(tmp_path)).meta.fingerprint.target) is None


def test_long_answers_are_cut_and_say_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=samples.TOKENS, user=lambda row: "x" * 1_000_000)
    turn = next(iter(samples.gather(run, samples.choose(run.turns)).values()))[0]
    assert sum(len(group.tokens) for group in turn.groups) == samples.TOKENS
    assert f"the first {samples.TOKENS} of" in turn.note
    assert len(turn.user) < samples.CHARACTERS + 50


def test_a_run_without_outputs_has_no_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", outputs=False)
    assert samples.gather(run, samples.choose(run.turns)) is None


@pytest.mark.parametrize("line", ["{", "[1]", json.dumps({"suite": "demo"})])
def test_a_damaged_outputs_file_is_one_line(tmp_path: Path, line: str) -> None:
    run = write_run(tmp_path / "run")
    with (run.directory / "outputs.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 13 is damaged"):
        samples.gather(run, samples.choose(run.turns))


def test_control_characters_are_shown_and_newlines_kept() -> None:
    assert visible("a\x1b[31mb\x00\n\t\x7f") == "a␛[31mb␀\n\t␡"
    assert visible("x\u202ey\ud800z\x85") == "x[U+202E]y\ufffdz\ufffd"
    assert visible(3) == 3


def test_cut_says_how_much_is_left_out() -> None:
    assert cut("abcdef", 2) == "ab … (4 more characters)"
    assert cut("abcdef", 6) == "abcdef"
