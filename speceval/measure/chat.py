"""From turns to prompt tokens, always through the target's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from speceval.errors import UserError
from speceval.measure.thoughts import Marks, visible

Message = dict[str, str]


def render(tokenizer: Any, messages: list[Message], template_kwargs: dict[str, Any]) -> list[int]:
    """Token ids of the conversation so far, with the header of the answer to come.

    Raises `UserError` when the target has no chat template or the template refuses the messages.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_kwargs)
    except Exception as error:  # templates raise whatever their authors chose
        if getattr(tokenizer, "chat_template", "") is None:  # nor does the tokenizer render in code
            raise UserError(
                "the target's tokenizer has no chat template: speceval measures chat models only"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the target's chat template refused the conversation: {reason}") from error
    if isinstance(text, str):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(text)  # tokenizers without a text form (Mistral's) answer in tokens


class Visible(NamedTuple):
    """What the next turn may see of an answer."""

    text: str
    cut: bool
    """Whether a thought in it never ended."""
    thought: int
    """Tokens of its thought, with the mark that ends it; 0 without one."""


def visible_answer(
    tokenizer: Any, token_ids: list[int], marker: str | None, marks: Marks, prompt: Sequence[int]
) -> Visible:
    """The part of an answer to `prompt` that the next turn may see.

    A `marker` is of the catalog: the final answer stands after the last one (gpt-oss thinks in channels). Else a
    thought is cut at token level by the model's own `marks`. Nothing is visible of an answer that was cut before.
    """
    if marker is None:
        answer = visible(marks, prompt, token_ids)
        text = str(tokenizer.decode(answer.token_ids, skip_special_tokens=True))
        return Visible(text, answer.unfinished, len(token_ids) - len(answer.token_ids))
    _, found, text = str(tokenizer.decode(token_ids, skip_special_tokens=False)).rpartition(marker)
    if not found:
        return Visible("", True, len(token_ids))
    return Visible(text.split("<|", 1)[0], False, _end(token_ids, tokenizer.encode(marker, add_special_tokens=False)))


def _end(tokens: Sequence[int], marker: Sequence[int]) -> int:
    """Place behind the last `marker` in `tokens`; 0 without one."""
    size = len(marker)
    places = range(len(tokens) - size, -1, -1)
    return next((place + size for place in places if list(tokens[place : place + size]) == list(marker)), 0)
