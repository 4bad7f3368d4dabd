"""What a server would put into the next turn's prompt: the answer without the thought, nothing of a cut thought."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speceval.engines.base import Parsed
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
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("◁think▷", "◁/think▷"),
    ("<|think|>", "<|/think|>"),
    ("<｜begin▁of▁thinking｜>", "<｜end▁of▁thinking｜>"),
    ("<|startofthought|>", "<|endofthought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<longcat_think>", "</longcat_think>"),
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
    assert thoughts.marks(words(start, end)) == ({1000}, {1001}, {1000, 1001}, ())


def test_a_model_without_thoughts_has_no_marks_and_shows_all() -> None:
    others = ("<tool_call>", "</tool_call>", "<|im_end|>", "<|channel|>", "[end]", "<|endoftext|>", "</reasonable")
    none = thoughts.marks(words(*others))
    assert none == thoughts.Marks(frozenset(), frozenset()) == thoughts.marks(Characters())
    assert thoughts.outside(Characters(), none, [1, 2], [97, 98]) == ("ab", False, 0)


def test_a_tag_within_a_thought_does_not_end_it() -> None:
    seed = ("<seed:think>", "</seed:think>", "<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>")
    assert thoughts.marks(words(*seed))[:2] == ({1000}, {1001})


THINKS = words("<think>", "</think>")
S, E = 1000, 1001


@pytest.mark.parametrize(
    ("prompt", "answer", "seen", "cut", "thought"),
    [
        ([97, S], [98, 98, E, 99, 100], "cd", False, 3),  # opened by the template
        ([97], [S, 98, E, 99, 100], "cd", False, 3),  # by the model
        ([97], [98, E, 99], "c", False, 2),  # by nobody
        ([97, S], [98, 98], "", True, 2),
        ([97], [98, S, 98, 98], "", True, 4),
        ([97, S, E], [98, 99], "bc", False, 0),  # an empty thought in the prompt: it does not think
        ([S, E, 97], [98, 99], "bc", False, 0),
        ([97, S], [98, E], "", False, 2),
        ([S, *[97] * 20], [98, 99], "bc", False, 0),  # a user who writes of marks
        ([97], [S, 98, E, 99, S, 98, E, 100], "cd", False, 3),  # it thinks again
        ([97], [S, 98, E, 99, S, 98], "c", False, 3),
        ([97], [S, 98, E, 99, E, 100], "cd", False, 3),  # two ends
    ],
)
def test_the_thought_is_cut_where_a_server_cuts_it(
    prompt: list[int], answer: list[int], seen: str, cut: bool, thought: int
) -> None:
    assert thoughts.outside(THINKS, thoughts.marks(THINKS), prompt, answer) == (seen, cut, thought)


def template(source: str | dict[str, str]) -> Any:
    tokenizer = words()
    tokenizer.chat_template = source
    return tokenizer


OPENS = "{{ '<|im_start|>assistant\n<think>' }}"
SPLITS = "{{ message['content'].split('</think>')[-1] }}{{ '[' + message['thinking'] + ']' }}"


@pytest.mark.parametrize("source", [OPENS, SPLITS + OPENS, {"default": OPENS}])
@pytest.mark.parametrize(
    ("prompt", "answer", "seen", "cut", "thought"),
    [
        ("assistant\n<think>", "hm</think>four", "four", False, 10),
        ("assistant\n<think>\n", "hm, what", "", True, 8),
        ("assistant\n", "<think>hm</think>\n\nfour</think>", "\n\nfour</think>", False, 17),
        ("assistant\n", "<think>hm", "", True, 9),
        ("what is <think>?\nassistant\n", "four", "four", False, 0),
    ],
)
def test_marks_that_are_several_tokens_are_read_from_the_template(
    source: Any, prompt: str, answer: str, seen: str, cut: bool, thought: int
) -> None:
    tokenizer = template(source)
    own = thoughts.marks(tokenizer)
    assert own.texts == (("<think>", "</think>"),)
    assert thoughts.outside(tokenizer, own, tokenizer.encode(prompt), tokenizer.encode(answer)) == (seen, cut, thought)


class Parsing(SimulatedEngine):
    """Its order names a parser: everything up to "Answer:" is thought."""

    def parser(self, template_kwargs: Any) -> Any:
        def parse(answer: Any) -> Parsed:
            text = self.tokenizer.decode(answer)
            thought, end, content = text.partition("Answer:")
            return (
                Parsed(text, thought, content.replace("-", ""), "Answer:") if end else Parsed(text, text, "", "Answer:")
            )

        return parse


@pytest.mark.parametrize(
    ("answer", "seen"),
    [("hm Answer:four", ("four", False, 10)), ("hm", ("", True, 2)), ("hm Answer:", ("", False, 10)),
     ("hm Answer:fo-ur", ("four", False, 10))],
)  # fmt: skip
def test_a_parser_that_the_user_names_has_the_word(answer: str, seen: tuple[str, bool, int]) -> None:
    see = thoughts.visible(Parsing((0.0,), tokenizer=THINKS), None, {})
    assert see([], THINKS.encode(answer)) == seen


def test_a_target_that_speaks_of_thoughts_and_ends_none_is_named() -> None:
    (note,) = thoughts.notes(
        SimulatedEngine((0.0,), tokenizer=words("<|content_thinking|>", "<|end_message|>")), None, {}
    )
    assert "has the token <|content_thinking|>, and none that ends a thought" in note
    for engine in (SimulatedEngine((0.0,)), SimulatedEngine((0.0,), tokenizer=THINKS), Parsing((0.0,))):
        assert thoughts.notes(engine, None, {}) == []


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
