"""Prompts go through the target's chat template; only the visible answer goes on."""

import pytest

from speceval.engines.simulated import Characters
from speceval.errors import UserError
from speceval.measure import chat
from speceval.measure.thoughts import Marks

NONE = Marks(frozenset(), frozenset())
FINAL = "<|channel|>final<|message|>"


def visible(text: str, marker: str | None) -> str:
    return chat.visible_answer(Characters(), [ord(c) for c in text], marker, NONE, [])[0]


def test_a_model_without_channels_shows_all_it_said() -> None:
    assert visible("four <b>", None) == "four <b>"


def test_only_the_final_channel_of_a_harmony_answer_is_visible() -> None:
    thought = "<|channel|>analysis<|message|>2+2 is<|end|><|start|>assistant"
    assert visible(f"{thought}{FINAL}four<|return|>", FINAL) == "four"


def test_an_answer_cut_while_thinking_shows_nothing() -> None:
    assert visible("<|channel|>analysis<|message|>2+2 is", FINAL) == ""


def test_a_thought_ends_behind_the_last_marker_of_the_answer() -> None:
    def tokens(text: str) -> int:
        return chat.visible_answer(Characters(), [ord(c) for c in text], FINAL, NONE, []).thought

    assert tokens(f"{FINAL}draft<|end|>hm{FINAL}four") == len(f"{FINAL}draft<|end|>hm{FINAL}")
    assert tokens("<|channel|>analysis<|message|>2+2 is") == len("<|channel|>analysis<|message|>2+2 is")


def test_template_arguments_reach_the_template() -> None:
    class Recorder(Characters):
        def apply_chat_template(self, messages: list[dict[str, str]], **kwargs: object) -> str:
            assert kwargs == {"tokenize": False, "add_generation_prompt": True, "reasoning_effort": "low"}
            return "x"

    assert chat.render(Recorder(), [{"role": "user", "content": "y"}], {"reasoning_effort": "low"}) == [120]


def test_a_target_without_a_template_is_refused() -> None:
    class Bare(Characters):
        chat_template = None

        def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
            raise ValueError("chat_template is not set\nand no template argument was passed")

    with pytest.raises(UserError, match="no chat template"):
        chat.render(Bare(), [], {})


def test_a_template_that_refuses_is_named_in_one_line() -> None:
    class Refusing(Characters):
        def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
            raise ValueError("roles must alternate\nand more")

    with pytest.raises(UserError, match=r"refused the conversation: roles must alternate$"):
        chat.render(Refusing(), [], {})


def test_a_template_in_code_is_used_though_there_is_none_to_read() -> None:
    class InCode(Characters):
        chat_template = None  # type: ignore[assignment]

    assert chat.render(InCode(), [{"role": "user", "content": "y"}], {}) == [ord(c) for c in "user: y\n"]
