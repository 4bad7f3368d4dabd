"""Prompts go through the target's chat template; only the visible answer goes on."""

from typing import Any

import jinja2
import pytest

from speceval.engines.simulated import Characters, SimulatedEngine
from speceval.errors import UserError
from speceval.measure import chat, thoughts

FINAL = "<|channel|>final<|message|>"


def see(text: str, marker: str | None) -> thoughts.Visible:
    return thoughts.visible(SimulatedEngine((0.0,)), marker, {})([], [ord(c) for c in text])


def visible(text: str, marker: str | None) -> str:
    return see(text, marker).text


def test_a_model_without_channels_shows_all_it_said() -> None:
    assert visible("four <b>", None) == "four <b>"


def test_only_the_final_channel_of_a_harmony_answer_is_visible() -> None:
    thought = "<|channel|>analysis<|message|>2+2 is<|end|><|start|>assistant"
    assert visible(f"{thought}{FINAL}four<|return|>", FINAL) == "four"


def test_an_answer_cut_while_thinking_shows_nothing() -> None:
    assert visible("<|channel|>analysis<|message|>2+2 is", FINAL) == ""


def test_a_thought_ends_behind_the_last_marker_of_the_answer() -> None:
    def tokens(text: str) -> int:
        return see(text, FINAL).thought

    assert tokens(f"{FINAL}draft<|end|>hm{FINAL}four") == len(f"{FINAL}draft<|end|>hm{FINAL}")
    assert tokens("<|channel|>analysis<|message|>2+2 is") == len("<|channel|>analysis<|message|>2+2 is")


def test_template_arguments_reach_the_template() -> None:
    class Recorder(Characters):
        def apply_chat_template(self, messages: list[dict[str, str]], **kwargs: object) -> str:
            assert kwargs == {"tokenize": False, "add_generation_prompt": True, "reasoning_effort": "low"}
            return "y"

    assert chat.render(Recorder(), [{"role": "user", "content": "y"}], {"reasoning_effort": "low"}) == [121]


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


class Jinja(Characters):
    def __init__(self, source: str) -> None:
        self.chat_template = source

    def apply_chat_template(self, messages: Any, add_generation_prompt: bool, **_: object) -> str:
        def refuse(reason: str) -> None:
            raise jinja2.TemplateError(reason)

        return jinja2.Environment().from_string(self.chat_template).render(messages=messages, raise_exception=refuse)


LOOP = "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
LOOP += "{% endif %}{% endfor %}{% endfor %}"
STRICT = "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts, please') }}{% endif %}"
STRICT += "[{{ m.role }}]{{ m.content[0].text }}{% endfor %}"
TALK = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "Q "},
]


@pytest.mark.parametrize("source", [LOOP, STRICT])
def test_a_template_that_reads_contents_in_parts_gets_them_so(source: str) -> None:
    text = "".join(map(chr, chat.render(Jinja(source), TALK, {})))
    assert text == "[user]Hi there[assistant][user]Q "


def test_a_template_that_changes_what_is_said_has_read_it() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content | upper }}{% endfor %}"
    assert "".join(map(chr, chat.render(Jinja(source), TALK[:1], {}))) == "[user]HI THERE"


def test_a_template_that_drops_what_is_said_is_refused() -> None:
    with pytest.raises(UserError, match="what the user says is not in the prompt"):
        chat.render(Jinja("{% for m in messages %}[{{ m.role }}]{% endfor %}"), TALK, {})
