"""What a server would put into the next turn's prompt: the answer without the thought, nothing of a cut thought."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speceval.engines.simulated import Characters, SimulatedEngine
from speceval.measure import thoughts
from speceval.measure.runner import Progress, Template, measure
from speceval.protocol import RunSpec
from speceval.store import Store
from speceval.suites import Conversation, Suite

PAIRS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|thinking_start|>", "<|thinking_end|>"),
]


def words(*more: str) -> Any:
    """A tokenizer with marks that are special tokens (ids from 1000 on)."""

    class Words(Characters):
        chat_template = "simulated"

        def get_vocab(self) -> dict[str, int]:
            return {chr(i): i for i in range(32, 127)} | {"</s>": 999, "<|tool>": 998, "<tool|>": 997}

        def get_added_vocab(self) -> dict[str, int]:
            return {word: 1000 + i for i, word in enumerate(more)}

        def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
            shown = (chr(t) if t < 997 else "" if skip_special_tokens else f"<{t}>" for t in token_ids)
            return "".join(shown)

    return Words()


@pytest.mark.parametrize(("start", "end"), PAIRS)
def test_the_marks_of_thoughts_are_found_by_their_form(start: str, end: str) -> None:
    assert thoughts.marks(words(start, end)) == ({1000}, {1001})


def test_a_model_without_thoughts_has_no_marks_and_shows_all() -> None:
    none = thoughts.marks(words("<tool_call>", "</tool_call>", "<|im_end|>"))
    assert none == (frozenset(), frozenset()) == thoughts.marks(Characters())
    assert thoughts.visible(none, [1, 2], [3, 4]) == ([3, 4], False, False)


MARKS = thoughts.Marks(frozenset({8}), frozenset({9}))


@pytest.mark.parametrize(
    ("prompt", "answer", "seen", "unfinished"),
    [
        ([1, 8], [2, 3, 9, 4, 5], [4, 5], False),  # opened by the template
        ([1], [8, 2, 9, 4, 5], [4, 5], False),  # by the model
        ([1], [2, 9, 4], [4], False),  # by nobody
        ([1, 8], [2, 3], [], True),
        ([1], [8, 2, 3], [], True),
        ([1, 8, 9], [2, 3], [2, 3], False),  # an empty thought in the prompt: it does not think
        ([8, 9, 1], [2, 3], [2, 3], False),
        ([1, 8], [2, 9], [], False),
        ([8, *[1] * 20], [2, 3], [2, 3], False),  # a user who writes of marks
    ],
)
def test_the_thought_is_cut_where_a_server_cuts_it(
    prompt: list[int], answer: list[int], seen: list[int], unfinished: bool
) -> None:
    cut = thoughts.visible(MARKS, prompt, answer)
    assert (cut.token_ids, cut.unfinished) == (seen, unfinished)


class Thinking(SimulatedEngine):
    """Answers every prompt with the same tokens."""

    said: tuple[int, ...] = ()

    def step(self) -> tuple[int, list[Any]]:
        committed, finished = super().step()
        for result in finished:
            result.token_ids[:] = (list(self.said) * 40)[: len(result.token_ids)]
        return committed, finished


@pytest.mark.parametrize(
    ("said", "seen", "cut", "thought"),
    [((1000, 97, 1001, 98, 99, 100), "bcd", 0, 3), ((1000, 97, 98, 99), "", 2, 6), ((97, 98), "ababab", 0, None)],
)
def test_the_next_prompt_holds_the_answer_alone_and_cut_thoughts_are_counted(
    tmp_path: Path, said: tuple[int, ...], seen: str, cut: int, thought: int | None
) -> None:
    engine = Thinking((0.0,), batch=2)
    engine.said, engine.tokenizer = said, words("<think>", "</think>")
    prompts: list[str] = []
    submit = engine.submit
    engine.submit = lambda name, prompt, *more: (  # type: ignore[method-assign]
        prompts.append(engine.tokenizer.decode(prompt)),
        submit(name, prompt, *more),
    )[1]
    spec = RunSpec(
        target="t", draft="d", k=1, temperature=1.0, drafting="probabilistic", suites=["s"], batch=2, max_tokens=6
    )
    suite = Suite("s", 1, "hash", [Conversation("c", "x", ["one", "two", "three"])], 6, None, "{prompt}", "here")
    with Store(tmp_path / "run") as store:
        measure(engine, spec, [suite], Template({}, None), store, Progress(1), lambda: None)
        assert (store.followed, store.cut_thoughts) == (2, cut)
    assert f"assistant: {seen}\nuser: two" in prompts[1]
    line = json.loads((tmp_path / "run" / "journal.jsonl").read_text())
    assert [turn.get("cut_thought", False) for turn in line["turns"]] == [bool(cut)] * 3
    assert [turn.get("thought_tokens") for turn in line["turns"]] == [thought] * 3
    with Store(tmp_path / "run") as again:
        assert again.cut_thoughts == cut
