"""The training text, its tokenizer and its chat template."""

from __future__ import annotations

import json
from collections import Counter

import jinja2.sandbox
import pytest

from speceval.paths import data_directory
from speceval.zoo import text
from speceval.zoo.recipe import Recipe

DEMO = data_directory("suites") / "demo.jsonl"


def demo_rows() -> list[dict]:
    return [json.loads(line) for line in DEMO.read_text().splitlines()]


@pytest.fixture(scope="module")
def groups() -> dict[str, list[text.Exchange]]:
    return text.exchanges(Recipe())


def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(text.CHAT_TEMPLATE)
    return template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=text.BOS,
        eos_token=text.EOS,
    )


def test_demo_suite_has_eight_prompts_of_each_category() -> None:
    assert Counter(row["category"] for row in demo_rows()) == {"code": 8, "chat": 8, "math": 8}


def test_demo_prompts_are_held_out_of_the_training_text(groups: dict[str, list[text.Exchange]]) -> None:
    asked = {exchange.question for group in groups.values() for exchange in group}
    prompts = {turn for row in demo_rows() for turn in row["turns"]}
    assert len(prompts) == 24
    assert not asked & prompts
    assert all(len(group) > 500 for group in groups.values())


def test_word_problems_give_right_answers(groups: dict[str, list[text.Exchange]]) -> None:
    for exchange in groups["math"]:
        numbers = exchange.answer.rsplit("=", 1)
        left = (
            numbers[0].replace("That is", "has").replace("Each gets", "has").replace("have", "has").rsplit("has", 1)[1]
        )
        first, operator, second = left.split()
        a, b = int(first), int(second)
        expected = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        assert exchange.answer.endswith(f"The answer is {expected}.")
        assert numbers[1].split()[0] == str(expected)


def test_tokenizer_reads_special_tokens_and_returns_any_text() -> None:
    from tokenizers import Tokenizer

    content = text.train_tokenizer(["def f(x):\n    return x + 12"] * 3, 300)
    assert text.encode(content, ["<s><|user|>"])[0] == [text.SPECIAL_TOKENS.index(t) for t in ("<s>", "<|user|>")]
    tokenizer = Tokenizer.from_str(content)
    for sample in ("def g(y):\n\treturn 2024", "naïve – 日本語", " leading space"):
        assert tokenizer.decode(tokenizer.encode(sample).ids) == sample
    assert len(tokenizer.encode("1234").ids) == 4


def test_chat_template_renders_what_the_target_was_trained_on() -> None:
    user, assistant = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    system = {"role": "system", "content": "S"}
    assert render([user], True) == "<s><|user|>Q<|assistant|>"
    assert render([system, user, assistant, user], True) == (
        "<s><|system|>S<|user|>Q<|assistant|>A</s><|user|>Q<|assistant|>"
    )
    assert render([user, assistant], False) == "<s><|user|>Q<|assistant|>A</s>"
