"""Answers are read by the reasoning parser that a user names, and templates that are code by vLLM's renderers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from speceval.engines.simulated import Characters
from speceval.engines.vllm import answers
from speceval.errors import UserError
from speceval.measure import chat, thoughts

pytest.importorskip("vllm")


class Words(Characters):
    """Characters, and special tokens from 1000 on."""

    def __init__(self, *words: str) -> None:
        self.all_special_tokens = [*words, "<eos>"]

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(1000)} | {word: 1000 + i for i, word in enumerate(self.all_special_tokens)}

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self.get_vocab().get(token)

    def encode(self, text: str, **_: Any) -> list[int]:
        parts, vocabulary = [text], self.get_vocab()
        for word in self.all_special_tokens:
            parts = [piece for part in parts for piece in (part.replace(word, f"\0{word}\0").split("\0"))]
        return [i for part in parts for i in ([vocabulary[part]] if part in vocabulary else map(ord, part))]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        special = ["" for _ in self.all_special_tokens] if skip_special_tokens else self.all_special_tokens
        return "".join(special[i - 1000] if i >= 1000 else chr(i) for i in token_ids)


INKLING = ("<|message_model|>", "<|content_thinking|>", "<|content_text|>", "<|end_message|>")
K3 = ("<|open|>", "<|close|>", "<|sep|>")


@pytest.mark.parametrize(
    ("name", "words", "answer", "seen"),
    [
        ("deepseek_r1", ("<think>", "</think>"), "<think>hm</think>four<eos>", "four"),
        ("deepseek_r1", ("<think>", "</think>"), "hm", None),
        ("gemma4", ("<|channel>", "<channel|>"), "<|channel>hm<channel|>fo<|channel>hm<channel|>ur", "four"),
        ("plamo3", ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"), "hm<|plamo:end_think:plamo|>a", "a"),
        ("granite", (), "Here is my thought process: hm Here is my response: four", " four"),
        ("hunyuan_a13b", (), "<think>\nhm\n</think>\n<answer>\nfour\n</answer>", "four"),
        ("kimi_k3", K3, "<|open|>think<|sep|>hm<|close|>think<|sep|><|open|>response<|sep|>four", "four"),
        ("kimi_k3", K3, "<|open|>think<|sep|>hm", None),
        ("inkling", INKLING, "<|content_thinking|>hm<|end_message|><|message_model|><|content_text|>four", "four"),
    ],
)
def test_a_named_parser_reads_answers_as_vllms_server_does(
    name: str, words: tuple[str, ...], answer: str, seen: str | None
) -> None:
    tokenizer = Words(*words)
    engine: Any = SimpleNamespace(tokenizer=tokenizer, parser=lambda kwargs: answers.parser(name, tokenizer, kwargs))
    text, cut, thought = thoughts.visible(engine, None, {})([], tokenizer.encode(answer))
    assert (text, cut) == (seen or "", seen is None)
    behind = tokenizer.decode(tokenizer.encode(answer)[thought:], skip_special_tokens=True)
    assert behind.replace("hm", "").removesuffix("\n</answer>") == (seen or "")


@pytest.mark.parametrize(("name", "told"), [("nope", "nope"), ("deepseek_r1", "could not locate")])
def test_a_parser_that_does_not_fit_ends_the_run_before_it_begins(name: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"^--engine-arg reasoning_parser={name}: does not fit this target: .*{told}"):
        answers.parser(name, Words(), {})


class InklingRenderer:
    """Renders in code, as vLLM's class of that name."""

    def render_messages(self, messages: list[dict[str, str]], params: Any) -> tuple[Any, dict[str, Any]]:
        in_tokens = type(self).__name__ == "MistralRenderer"
        assert params.chat_template_kwargs == {"add_generation_prompt": True, "tokenize": in_tokens, "effort": "low"}
        return messages, {"prompt_token_ids": [7, 8, len(messages)]}


class MistralRenderer(InklingRenderer):
    """Vllm's own has no faithful text."""


class HfRenderer(InklingRenderer):
    """Vllm's own renders the tokenizer's template."""


@pytest.mark.parametrize("renderer", [InklingRenderer, MistralRenderer])
def test_a_template_in_code_is_rendered_as_vllm_renders_it(renderer: type[InklingRenderer]) -> None:
    llm = SimpleNamespace(get_tokenizer=Characters, renderer=renderer())
    tokenizer = answers.tokenizer(llm)
    assert chat.render(tokenizer, [{"role": "user", "content": "x"}], {"effort": "low"}) == [7, 8, 1]
    assert tokenizer.decode([97]) == "a"
    llm.renderer = HfRenderer()
    assert type(answers.tokenizer(llm)) is Characters
