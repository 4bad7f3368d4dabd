"""How a row holds a conversation: user turns, chat messages (OpenAI's or ShareGPT's, also of a batch file), or Alpaca's
instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from speceval.errors import UserError

from .read import Repeated

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""What a message's `role` or `from` may be."""
_ROLE, _TEXT = ("role", "from"), ("content", "value", "text")
_PARTS = ("text", "input_text")
_LISTED = ("messages", "conversations", "conversation")
"""Columns that hold messages: a list of them as a text would be measured as one prompt."""


class Talk(NamedTuple):
    """A conversation as its row holds it."""

    turns: list[str]
    """The user's."""
    system: str | None = None
    """Its own system prompt."""
    answers: int = 0
    """Recorded answers, which nobody plays: the model answers itself."""
    used: frozenset[str] = frozenset()
    """Columns read beside the one that holds the text."""
    unused: frozenset[str] = frozenset()
    """Fields of its messages that nothing reads."""


def request(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line of OpenAI's batch files as the request in it, under the line's own id; any other row as it is."""
    body = record.get("body")
    return {"id": record["custom_id"], **body} if isinstance(body, dict) and "custom_id" in record else record


def piece(record: Mapping[str, Any]) -> bool:
    """Whether a row is one that ShareGPT's files have many of: nothing, or what follows the start of a conversation."""
    held = record.get("conversations")
    if not isinstance(held, list) or any(record.get(name) for name in ("turns", "prompt")):
        return False
    first = held[0] if held else {"from": "gpt"}
    return isinstance(first, dict) and ROLES.get(str(first.get("from")).lower()) == "assistant"


def talk(record: Mapping[str, Any], field: str, where: str) -> Talk:
    """The conversation in a row's column `field`. Raises UserError that begins with `where`."""
    value, place = record[field], f"{where}, field '{field}'"
    if isinstance(value, str):
        if field in _LISTED and value.lstrip().startswith(("[", "{")):
            raise UserError(
                f"{place}: JSON in a text instead of a list of messages: write the list itself, as .jsonl can"
            )
        return _instruction(record, where) if field == "instruction" else Talk([text(value, place)])
    if not isinstance(value, list):
        raise UserError(f"{place}: {_kind(value)} instead of text or a list of user turns")
    if not value:
        raise UserError(f"{place}: an empty list instead of user turns")
    if isinstance(value[0], dict):
        return _messages(value, place)
    for index, turn in enumerate(value, start=1):
        if not isinstance(turn, str):
            raise UserError(f"{place}: turn {index} is {_kind(turn)} instead of text")
        text(turn, place, f"turn {index}")
    return Talk(value)


def text(value: str, place: str, part: str = "turn 1") -> str:
    """`value`, if it is text that a tokenizer can read. Raises UserError that begins with `place`."""
    if not value.strip():
        raise UserError(f"{place}: {part} is empty")
    return whole(value, place, part)


def whole(value: str, place: str, part: str = "the text") -> str:
    """`value`, if all its characters are whole. Raises UserError that begins with `place`."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise UserError(
            f"{place}: {part} has half an emoji or another half character ({half}) at position {error.start + 1}, "
            "which no tokenizer reads: write the whole character or leave it out"
        ) from None
    return value


def _instruction(record: Mapping[str, Any], where: str) -> Talk:
    """Alpaca's: `input`, if there is any, on the next line; `history` holds earlier pairs of question and answer."""
    turns = [text(record["instruction"], f"{where}, field 'instruction'")]
    extra, history = record.get("input"), record.get("history") or []
    if extra is not None and not isinstance(extra, str):
        raise UserError(f"{where}, field 'input': {_kind(extra)} instead of text")
    if extra:
        turns = [turns[0] + "\n" + whole(extra, f"{where}, field 'input'")]
    if not isinstance(history, list) or not all(_is_pair(pair) for pair in history):
        raise UserError(f"{where}, field 'history': not a list of [question, answer] pairs of text")
    earlier = [
        text(question, f"{where}, field 'history'", f"question {index}")
        for index, (question, _) in enumerate(history, start=1)
    ]
    answers = len(earlier) + (record.get("output") not in (None, ""))
    return Talk(earlier + turns, None, answers, frozenset({"input", "output", "history"}))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)


def _messages(messages: list[Any], place: str) -> Talk:
    """Chat messages: a system prompt or none, then user and assistant in turns. Without roles all are the user's."""
    system, turns, answers, unused = None, list[str](), 0, set[str]()
    roles = [_role(message, f"{place}: message {index}") for index, message in enumerate(messages, start=1)]
    chat = any(roles)
    for index, (message, role) in enumerate(zip(messages, roles, strict=True), start=1):
        part = f"message {index}"
        if chat and role is None:
            raise UserError(f"{place}: {part} has no role")
        if role == "system" and index > 1:
            raise UserError(f"{place}: {part} is a system prompt: only the first message may be one")
        expected = "assistant" if len(turns) > answers else "user"
        if chat and role not in ("system", expected):
            raise UserError(f"{place}: {part} is the {role}'s, where one of the {expected} is to come")
        if role == "assistant":
            answers += 1
            continue
        content, unread = _content(message, place, part)
        unused |= unread
        unused |= {name for name, value in message.items() if value not in (None, [], "") and name not in _ROLE + _TEXT}
        if role == "system":
            system = whole(content, place, part)
        else:
            turns.append(text(content, place, part))
    if not turns:
        raise UserError(f"{place}: no message of the user")
    return Talk(turns, system, answers, frozenset(), frozenset(unused))


def _role(message: Any, where: str) -> str | None:
    if not isinstance(message, dict):
        raise UserError(f"{where} is {_kind(message)} instead of an object with role and content")
    if isinstance(message, Repeated):
        raise UserError(f"{where} has '{message.key}' twice")
    field = _only(message, _ROLE, where)
    if field is None:
        return None
    named = message[field]
    if not isinstance(named, str) or named.lower() not in ROLES:
        raise UserError(f"{where} has the role {named!r}, which is not played: system, user and assistant are")
    return ROLES[named.lower()]


def _content(message: Mapping[str, Any], place: str, part: str) -> tuple[str, set[str]]:
    """A message's text, and what of it nothing reads. Parts that are all text are joined as vLLM joins them."""
    field = _only(message, _TEXT, f"{place}: {part}")
    if field is None:
        raise UserError(f"{place}: {part} has no content")
    value = message[field]
    if isinstance(value, str):
        return value, set()
    where = f"{place}: {part}, field '{field}'"
    if not isinstance(value, list) or not value or not all(isinstance(piece, dict) for piece in value):
        raise UserError(f"{where}: {_kind(value)} instead of text")
    for piece in value:
        if piece.get("type") not in _PARTS or not isinstance(piece.get("text"), str):
            raise UserError(f"{where}: a part of type {piece.get('type')!r}, which is not played: text is")
    return "\n".join(piece["text"] for piece in value), {name for piece in value for name in piece} - {"type", "text"}


def _only(message: Mapping[str, Any], names: tuple[str, ...], where: str) -> str | None:
    """The one field of those names that is there. Raises UserError for two that differ."""
    there = [name for name in names if message.get(name) is not None]
    if len(there) > 1 and message[there[0]] != message[there[1]]:
        raise UserError(f"{where} has '{there[0]}' and '{there[1]}': which one is meant?")
    return there[0] if there else None


def _kind(value: Any) -> str:
    return type(value).__name__
