"""From turns to prompt tokens, always through the target's own chat template."""

from __future__ import annotations

from typing import Any

from speceval.errors import UserError

Message = dict[str, str]


def render(tokenizer: Any, messages: list[Message], template_kwargs: dict[str, Any]) -> list[int]:
    """Token ids of the conversation so far, with the header of the answer to come.

    Templates that read contents in parts, as some that also take pictures do, get them so.
    Raises `UserError` when the target has no chat template, or the template refuses the messages or drops the last one.
    """
    try:
        text = _apply(tokenizer, messages, template_kwargs)
        if _dropped(tokenizer, messages, template_kwargs, text):
            text = _apply(tokenizer, in_parts(messages), template_kwargs)
            if messages[-1]["content"].strip() not in text:
                raise ValueError("what the user says is not in the prompt")
    except Exception as error:  # templates raise whatever their authors chose
        if getattr(tokenizer, "chat_template", "") is None:  # nor does the tokenizer render in code
            raise UserError(
                "the target's tokenizer has no chat template: speceval measures chat models only"
            ) from error
        text = _read_in_parts(tokenizer, messages, template_kwargs)
        if text is None:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"the target's chat template refused the conversation: {reason}") from error
    if isinstance(text, str):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(text)  # tokenizers without a text form (Mistral's) answer in tokens


def in_parts(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages with each content as OpenAI's list of parts."""
    return [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _apply(tokenizer: Any, messages: list[Any], template_kwargs: dict[str, Any]) -> Any:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_kwargs)


def _dropped(tokenizer: Any, messages: list[Message], template_kwargs: dict[str, Any], text: Any) -> bool:
    """Whether the prompt is the same whatever the last message says."""
    if not messages or not isinstance(text, str) or messages[-1]["content"].strip() in text:
        return False
    other = messages[-1] | {"content": messages[-1]["content"] + "."}
    return bool(_apply(tokenizer, [*messages[:-1], other], template_kwargs) == text)


def _read_in_parts(tokenizer: Any, messages: list[Message], template_kwargs: dict[str, Any]) -> str | None:
    """The prompt of a template that refuses contents as text and reads them in parts; None for any other."""
    try:
        text = _apply(tokenizer, in_parts(messages), template_kwargs)
    except Exception:
        return None
    return text if isinstance(text, str) and messages and messages[-1]["content"].strip() in text else None
