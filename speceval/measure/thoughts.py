"""What of an answer the next turn may see: all but the thoughts, as with a server that has a reasoning parser.

Where thoughts begin and end is said by the catalog (gpt-oss thinks in channels), by vLLM's reasoning parser if the user
names one, or else by the form of the tokens in the vocabulary and of the words in the chat template.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from speceval.engines.base import Engine, Parsed

HEADER = 8
"""Last tokens of a prompt, in which a template may open a thought: marks before them are text that somebody wrote."""
_BRACKETED = re.compile(r"[<\[◁⟨【]([^\s<>\[\]'\"{}]{1,40})[>\]▷⟩】]")
_THOUGHT = re.compile(r"(think(?:ing)?|thoughts?|reason(?:ing)?)")
_WORDS = {"think", "thinking", "thought", "thoughts", "reason", "reasoning", "inner"}
_BEGIN, _END = {"begin", "start", "open", "prefix"}, {"end", "stop", "close", "suffix"}


class Marks(NamedTuple):
    """What opens and what closes a thought; all empty for a model without thoughts of its own."""

    start: frozenset[int]
    end: frozenset[int]
    dropped: frozenset[int] = frozenset()
    """Those of them that decoding drops, being special tokens."""
    texts: tuple[tuple[str, str], ...] = ()
    """Pairs that are no tokens, but text of the chat template."""


class Visible(NamedTuple):
    """An answer as the next turn sees it."""

    text: str
    cut: bool
    """Whether a thought in it never ended, so that nothing is left."""
    thought: int
    """Tokens up to the end of its first thought, with the mark that ends it; 0 without one."""


class _Form(NamedTuple):
    """A token or word with the form of a mark."""

    ends: bool
    about: tuple[str, ...]
    """Its words, but those that say whether it begins or ends: the same for the two of a pair."""


def visible(
    engine: Engine, marker: str | None, template_kwargs: dict[str, Any]
) -> Callable[[Sequence[int], Sequence[int]], Visible]:
    """How the answers of an engine's target are read: from prompt and answer to what is visible of it.

    `marker` is of the catalog: the final answer stands after the last one. Raises `UserError` where the parser that the
    engine was told to take cannot be had.
    """
    tokenizer = engine.tokenizer
    if marker is not None:
        return lambda _, answer: _after_marker(tokenizer, marker, answer)
    parse = engine.parser(template_kwargs)
    if parse is not None:
        return lambda _, answer: _parsed(tokenizer, parse(answer), answer)
    own = marks(tokenizer)
    return lambda prompt, answer: outside(tokenizer, own, prompt, answer)


def notes(engine: Engine, marker: str | None, template_kwargs: dict[str, Any]) -> list[str]:
    """A line for a target whose tokens speak of thoughts while nothing is known to close one. Raises as `visible`."""
    if marker is not None or engine.parser(template_kwargs) is not None:
        return []
    own = marks(engine.tokenizer)
    forms = sorted(token for token in _vocabulary(engine.tokenizer) if _form(token) is not None)
    if own.end or own.texts or not forms:
        return []
    return [
        f"the target has the token {forms[0]}, and none that ends a thought by its form: if it thinks, its "
        "thoughts stand in the prompts of follow-up turns; --engine-arg reasoning_parser=NAME has vLLM's cut them"
    ]


def marks(tokenizer: Any) -> Marks:
    """Those of a tokenizer: tokens of its vocabulary, and words of its chat template, with the form of one."""
    vocabulary = _vocabulary(tokenizer)
    starts, ends = _pairs(vocabulary)
    start, end = (frozenset(vocabulary[token] for token in tokens) for tokens in (starts, ends))
    dropped = frozenset(token for token in start | end if not tokenizer.decode([token], skip_special_tokens=True))
    return Marks(start, end, dropped, _texts(tokenizer, vocabulary))


def outside(tokenizer: Any, marks: Marks, prompt: Sequence[int], answer: Sequence[int]) -> Visible:
    """What stands outside the thoughts of an answer to a prompt, whose last tokens may have opened one.

    All after the first end, nothing if a thought that was opened has none. Of later thoughts those are cut whose marks
    decoding would drop; other marks are text that the template sees, as it sees it with a server.
    """
    end = next((place for place, token in enumerate(answer) if token in marks.end), None)
    if end is None and marks.texts and (read := _outside_texts(tokenizer, marks, prompt, answer)) is not None:
        return read
    if end is None and (_opened(marks, prompt) or any(token in marks.start for token in answer)):
        return Visible("", True, len(answer))
    thought = 0 if end is None else end + 1
    kept, inside = [], False
    for token in answer[thought:]:
        if token in marks.dropped:
            inside = token in marks.start
        elif not inside:
            kept.append(token)
    return Visible(str(tokenizer.decode(kept, skip_special_tokens=True)), False, thought)


def _outside_texts(tokenizer: Any, marks: Marks, prompt: Sequence[int], answer: Sequence[int]) -> Visible | None:
    """The same by marks that are text; None where there are none."""
    text = str(tokenizer.decode(list(answer), skip_special_tokens=True))
    places = [(place, end) for _, end in marks.texts if (place := text.find(end)) >= 0]
    if places:
        place, end = min(places)
        return Visible(text[place + len(end) :], False, _tokens(tokenizer, answer, place + len(end)))
    longest = max(len(start) for start, _ in marks.texts)
    header = str(tokenizer.decode(list(prompt[-HEADER - longest :]), skip_special_tokens=True)).rstrip()
    if any(start in text or header.endswith(start) for start, _ in marks.texts):
        return Visible("", True, len(answer))
    return None


def _parsed(tokenizer: Any, parsed: Parsed, answer: Sequence[int]) -> Visible:
    if not parsed.thought:
        return Visible(parsed.content, False, 0)
    ended = bool(parsed.end) and parsed.end in parsed.text
    if not parsed.content:
        return Visible("", not ended, len(answer))
    place = parsed.text.rfind(parsed.content)
    if place < 0 and ended:  # in pieces, between thoughts
        place = parsed.text.find(parsed.end) + len(parsed.end)
    return Visible(parsed.content, False, _tokens(tokenizer, answer, place, skip_special_tokens=False))


def _after_marker(tokenizer: Any, marker: str, answer: Sequence[int]) -> Visible:
    before, found, text = str(tokenizer.decode(list(answer), skip_special_tokens=False)).rpartition(marker)
    if not found:
        return Visible("", True, len(answer))
    thought = _tokens(tokenizer, answer, len(before) + len(marker), skip_special_tokens=False)
    return Visible(text.split("<|", 1)[0], False, thought)


def _tokens(tokenizer: Any, answer: Sequence[int], characters: int, skip_special_tokens: bool = True) -> int:
    """The fewest tokens of an answer whose text has so many characters."""

    def length(count: int) -> int:
        return len(tokenizer.decode(list(answer[:count]), skip_special_tokens=skip_special_tokens))

    return bisect_left(range(len(answer) + 1), characters, key=length)


def _opened(marks: Marks, prompt: Sequence[int]) -> bool:
    last = next((token for token in reversed(prompt[-HEADER:]) if token in marks.start or token in marks.end), None)
    return last in marks.start


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for name in ("get_vocab", "get_added_vocab"):
        if callable(read := getattr(tokenizer, name, None)):
            vocabulary |= read()
    return vocabulary


def _pairs(tokens: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those that open and those that close a thought, by their form."""
    forms = {token: form for token in tokens if (form := _form(token)) is not None}
    ends = [token for token, form in forms.items() if form.ends]
    about = {forms[token].about for token in ends}
    return [token for token, form in forms.items() if not form.ends and form.about in about], ends


def _form(token: str) -> _Form | None:
    """`</think>`, `[/THINK]`, `<|END_THINKING|>`, `<|end_of_thought|>`, `<channel|>`, and what they close."""
    match = _BRACKETED.fullmatch(token)
    if match is None:
        return None
    body = match[1].lower().replace("｜", "|")
    mirrored = body.startswith("|") != body.endswith("|")
    words = [word.removesuffix("of") for word in re.findall("[a-z]+", _THOUGHT.sub(r" \1 ", body))]
    if not _WORDS.intersection(words) and not (mirrored and "channel" in words):
        return None
    ends = body.strip("|").startswith("/") or bool(_END.intersection(words)) or (mirrored and body.endswith("|"))
    return _Form(ends, tuple(word for word in words if word and word not in _BEGIN | _END))


def _texts(tokenizer: Any, vocabulary: dict[str, int]) -> tuple[tuple[str, str], ...]:
    """Pairs of marks that the chat template names and the vocabulary does not hold; of `<think>` alone with its end."""
    template = getattr(tokenizer, "chat_template", None)
    sources = template.values() if isinstance(template, dict) else [template]
    named = {match[0] for source in sources if isinstance(source, str) for match in _BRACKETED.finditer(source)}
    tags = {f"</{word[1:]}" for word in named if re.fullmatch(r"<\w+>", word) and _form(word)}
    starts, ends = _pairs(sorted((named | tags) - vocabulary.keys()))
    about = {word: form.about for word in (*starts, *ends) if (form := _form(word)) is not None}
    return tuple((start, end) for end in ends for start in starts if about[start] == about[end])
