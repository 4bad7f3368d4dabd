"""From turns to prompt tokens, always through the target's own chat template."""

from __future__ import annotations

from typing import Any

from speceval.errors import UserError

Message = dict[str, str]


def render(tokenizer: Any, messages: list[Message], template_kwargs: dict[str, Any]) -> list[int]:
    """Token ids of the conversation so far, with the header of the answer to come.

    Raises `UserError` when the target has no chat template or the template refuses the messages.
    """
    if getattr(tokenizer, "chat_template", "") is None:
        raise UserError("the target's tokenizer has no chat template: speceval measures chat models only")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_kwargs)
    except Exception as error:  # templates raise whatever their authors chose
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the target's chat template refused the conversation: {reason}") from error
    if isinstance(text, str):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(text)  # tokenizers without a text form (Mistral's) answer in tokens


def visible_answer(tokenizer: Any, token_ids: list[int], marker: str | None) -> str:
    """The part of an answer that the next turn may see.

    Models that think aloud in channels (gpt-oss) name the `marker` after which the final answer stands; when the
    answer was cut before it, nothing of it is visible. Templates that drop thinking by themselves need no marker.
    """
    if marker is None:
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))
    _, found, answer = str(tokenizer.decode(token_ids, skip_special_tokens=False)).rpartition(marker)
    return answer.split("<|", 1)[0] if found else ""
