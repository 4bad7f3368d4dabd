"""What was asked for reaches the prompts, or is refused or named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest

from speceval.engines.simulated import Characters
from speceval.errors import UserError
from speceval.measure import effect
from speceval.measure.job import prepare
from speceval.suites import Conversation, Suite

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
THINKING = (
    PLAIN + "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}"
    "{% if not effort is defined %}{% set effort = 'medium' %}{% endif %}({{ effort }})"
    "{% for m in messages %}{% if m.role == 'assistant' and keep_thoughts %}!{% break %}{% endif %}{% endfor %}"
    "{% generation %}{% endgeneration %}"
)
USER_ONLY = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"


class Jinja(Characters):
    """A tokenizer whose template is real."""

    def __init__(self, source: Any) -> None:
        self.chat_template = source

    def apply_chat_template(self, messages: list[dict[str, str]], **kwargs: Any) -> str:
        source = self.chat_template["default"] if isinstance(self.chat_template, dict) else self.chat_template
        source = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        return (
            jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
            .from_string(source)
            .render(messages=messages, **kwargs)
        )


def suite(*systems: str | None, of_suite: str | None = None) -> Suite:
    conversations = [Conversation(f"{i}", None, ["q", "r"], system) for i, system in enumerate(systems or (None,))]
    return Suite("s", 1, "hash", conversations, 60, of_suite, "{prompt}", "made here")


def check(template: Any, known: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
    return effect.check(Jinja(template), [suite()], kwargs, known or {}, "the-target")


@pytest.mark.parametrize(
    ("template", "arguments", "told"),
    [
        (THINKING, {"enable_thinkng": False}, "does not read it; did you mean enable_thinking"),
        (THINKING, {"thinking": True}, "--template-arg thinking: the chat template of the-target does not read it"),
        (THINKING, {"enable_thinking": False, "reasoning_effort": "low"}, "--template-arg reasoning_effort"),
        (PLAIN, {"date_string": "26 Jul 2024"}, "--template-arg date_string"),
        (PLAIN, {"content": "x"}, "--template-arg content"),
        ({"default": PLAIN, "tool_use": PLAIN}, {"documents": [1]}, "--template-arg documents"),
    ],
)
def test_a_template_argument_that_the_template_does_not_read_is_refused(
    template: Any, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        check(template, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"enable_thinking": False}, {"effort": "low"}, {"keep_thoughts": True}, {"enable_thinking": False, "effort": "x"}],
)
def test_an_argument_that_moves_a_prompt_passes_though_it_be_after_an_answer(arguments: dict[str, Any]) -> None:
    assert check(THINKING, **arguments) == []


def test_an_argument_that_is_read_and_moves_nothing_is_named() -> None:
    """ "false" in quotation marks is no false; a default need not be given."""
    (line,) = check(THINKING, enable_thinking="false")
    assert line == "--template-arg enable_thinking='false' moves no prompt: without it they are the same"
    assert "effort='medium'" in check(THINKING, effort="medium")[0]


def test_the_catalog_s_own_arguments_may_be_defaults_but_unread_ones_are_named() -> None:
    assert check(THINKING, known={"effort": "medium"}, effort="medium") == []
    (line,) = check(PLAIN, known={"effort": "medium"}, effort="medium")
    assert "does not read effort, which the catalog has" in line


def test_where_the_template_is_code_an_argument_without_effect_is_named() -> None:
    (line,) = effect.check(Code(), [suite()], {"a": 1}, {}, "t")
    assert "a=1 moves no prompt" in line


class Code(Characters):
    """A tokenizer that renders in code."""

    chat_template = 3  # anything but a source


@pytest.mark.parametrize("made", [suite(None, "Answer in French."), suite(of_suite="Be polite."), suite("x", "y")])
def test_a_system_prompt_that_the_template_drops_is_refused(made: Suite) -> None:
    with pytest.raises(UserError, match="suite s: the chat template of t drops system prompts"):
        effect.check(Jinja(USER_ONLY), [suite(), made], {}, {}, "t")
    assert effect.check(Jinja(PLAIN), [suite(), made], {}, {}, "t") == []


def test_a_system_prompt_that_is_the_template_s_own_default_is_not_called_dropped() -> None:
    default = "{% if messages[0].role != 'system' %}[system]Be nice.{% endif %}" + PLAIN
    assert effect.check(Jinja(default), [suite("Be nice.")], {}, {}, "t") == []


def prepared(draft: str, suites: Sequence[str] = ("demo",), **fields: Any) -> None:
    prepare(target="zoo", draft=draft, temperature=1.0, k=3, suite_names=list(suites), **fields)


@pytest.mark.parametrize(
    ("draft", "key"),
    [
        ("lk-eagle3", "prompt_lookup_max"),
        ("lk-medusa", "suffix_decoding_max_tree_depth"),
        ("suffix", "prompt_lookup_min"),
        ("ngram", "suffix_decoding_min_token_prob"),
        ("ngram", "quantization"),
        ("suffix", "draft_tensor_parallel_size"),
        ("ngram", "parallel_drafting"),
    ],
)
def test_a_key_that_the_drafter_s_method_does_not_read_is_refused(draft: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"^--draft-arg {key}: has no meaning for \w+ drafts"):
        prepared(draft, draft_args={key: 1})
    prepared("ngram", draft_args={"prompt_lookup_max": 1})  # one that it reads


def test_two_suites_of_one_name_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(UserError, match="two suites are called b: rename one"):
        prepared("ngram", suites=[str(tmp_path / f"{name}.jsonl") for name in ("a", "b", "c/b")])
