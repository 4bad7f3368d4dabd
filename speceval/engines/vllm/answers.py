"""Messages and answers as vLLM's own server reads them: templates that are code, and reasoning parsers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speceval.engines.base import Parsed
from speceval.errors import UserError


class InCode:
    """A tokenizer whose chat template is vLLM's code: a renderer."""

    def __init__(self, tokenizer: Any, renderer: Any) -> None:
        self._tokenizer, self._renderer = tokenizer, renderer
        self.chat_template = (type(renderer).__name__,)
        """No Jinja source."""
        self._in_tokens = type(renderer).__name__ == "MistralRenderer"  # its text is not faithful

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool = False, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str | list[int]:
        """What vLLM's server makes of the messages: tokens, or a text."""
        from vllm.renderers import ChatParams

        asked = {
            "add_generation_prompt": add_generation_prompt,
            "tokenize": tokenize or self._in_tokens,
            **kwargs,
        }
        _, prompt = self._renderer.render_messages(messages, ChatParams(chat_template_kwargs=asked))
        tokens = prompt.get("prompt_token_ids")
        return str(prompt["prompt"]) if tokens is None else list(tokens)


def tokenizer(llm: Any) -> Any:
    """The target's, whose template is what vLLM renders with."""
    own, renderer = llm.get_tokenizer(), getattr(llm, "renderer", None)
    of_source = renderer is None or type(renderer).__name__ in ("HfRenderer", "TerratorchRenderer")
    return own if of_source else InCode(own, renderer)


def parser(name: str, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> Callable[[Sequence[int]], Parsed]:
    """How the reasoning parser of that name reads answers. Raises `UserError` where it does not fit the target."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager

    where = f"--engine-arg reasoning_parser={name}"
    try:
        made = ReasoningParserManager.get_reasoning_parser(name)(
            getattr(tokenizer, "_tokenizer", tokenizer), chat_template_kwargs=dict(template_kwargs)
        )
        request = made.adjust_request(
            ChatCompletionRequest(
                model="target", messages=[{"role": "user", "content": "-"}], chat_template_kwargs=dict(template_kwargs)
            )
        )
        made.extract_reasoning("-", request)
    except Exception as error:  # whatever its author chose
        raise UserError(f"{where}: does not fit this target: {_line(error)}") from error

    def parse(answer: Sequence[int]) -> Parsed:
        text = str(tokenizer.decode(list(answer), skip_special_tokens=False))
        try:
            thought, content = made.extract_reasoning(text, request)
        except Exception as error:
            raise UserError(f"{where}: cannot read an answer of this target: {_line(error)}") from error
        return Parsed(text, thought or "", _plain(tokenizer, content or ""), made.reasoning_end_str or "")

    return parse


def _plain(tokenizer: Any, text: str) -> str:
    """Without special tokens, which are left where they are no marks."""
    for token in getattr(tokenizer, "all_special_tokens", ()):
        text = text.replace(token, "")
    return text


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
