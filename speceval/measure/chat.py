"""From turns to prompt tokens, always through the target's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def visible_answer(
    tokenizer: Any, token_ids: list[int], marker: str | None, marks: Marks, prompt: Sequence[int]
) -> tuple[str, bool]:
    """The part of an answer to `prompt` that the next turn may see, and whether a thought in it never ended.

    A `marker` is of the catalog: the final answer stands after the last one (gpt-oss thinks in channels). Else a
    thought is cut at token level by the model's own `marks`. Nothing is visible of an answer that was cut before.
    """
    if marker is None:
        answer = visible(marks, prompt, token_ids)
        return str(tokenizer.decode(answer.token_ids, skip_special_tokens=True)), answer.unfinished
    _, found, text = str(tokenizer.decode(token_ids, skip_special_tokens=False)).rpartition(marker)
    return text.split("<|", 1)[0] if found else "", not found
