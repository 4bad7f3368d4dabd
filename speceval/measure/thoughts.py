"""Where a model's thoughts begin and end, in its own tokens, and what of an answer the next turn may see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_END = re.compile(
    r"""(?ix) </[\w:.|]*(think|thought|reason)\w*(:\w+)?> | \[/\w*(think|thought|reason)\w*\]
    | <\w*(think|thought|reason|channel)\w*\|>
    | <\|?(end_|end_of_)(\w*)(think|thought|reason)\w*\|?> | <\|?\w*(think|thought|reason)\w*_end\|?>""",
)
"""Forms of the token that closes a thought: a closing tag or bracket, a mirrored tag, a tag with "end" in its name."""


HEADER = 8
"""Last tokens of a prompt, in which a template may open a thought: marks before them are text that somebody wrote."""


class Marks(NamedTuple):
    """Token ids that open and that close a thought; both empty for a model without thoughts of its own."""

    start: frozenset[int]
    end: frozenset[int]


class Answer(NamedTuple):
    """An answer as the next turn sees it."""

    token_ids: list[int]
    thought: bool
    """Whether a thought was cut off."""
    unfinished: bool
    """Whether that thought never ended, so that nothing is left."""


def marks(tokenizer: Any) -> Marks:
    """Those of a tokenizer: tokens of its vocabulary with the form of one."""
    vocabulary: dict[str, int] = {}
    for name in ("get_vocab", "get_added_vocab"):
        if callable(read := getattr(tokenizer, name, None)):
            vocabulary |= read()
    ends = [token for token in vocabulary if _END.fullmatch(token)]
    starts = {start for end in ends for start in _openings(end) if start in vocabulary}
    return Marks(frozenset(vocabulary[token] for token in starts), frozenset(vocabulary[token] for token in ends))


def visible(marks: Marks, prompt: Sequence[int], answer: Sequence[int]) -> Answer:
    """What follows the thought of an answer to a prompt, whose last tokens may have opened it.

    As a server's reasoning parser has it: all after the first end, nothing if a thought that was opened has none.
    """
    ends = [place for place, token in enumerate(answer) if token in marks.end]
    if ends:
        return Answer(list(answer[ends[0] + 1 :]), True, False)
    if _opened(marks, prompt) or any(token in marks.start for token in answer):
        return Answer([], True, True)
    return Answer(list(answer), False, False)


def _opened(marks: Marks, prompt: Sequence[int]) -> bool:
    last = next((token for token in reversed(prompt[-HEADER:]) if token in marks.start or token in marks.end), None)
    return last in marks.start


def _openings(end: str) -> list[str]:
    """What could open what `end` closes."""
    if end.startswith(("</", "[/")):
        return [end[0] + end[2:]]
    if not end.startswith("<|") and end.endswith("|>"):
        return [f"<|{end[1:-2]}>"]
    pairs = (("END", "START"), ("END", "BEGIN"), ("end", "start"), ("end", "begin"))
    return [re.sub(rf"(?<![A-Za-z]){word}(?![A-Za-z])", other, end) for word, other in pairs if word in end]
