"""Does what was asked for reach the prompts? The first of them are rendered with and without it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from speceval.errors import UserError, meant
from speceval.measure import chat
from speceval.suites import Suite

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Marks of an answer's tokens for training, a statement of transformers that Jinja itself does not know."""


def check(
    tokenizer: Any, suites: Iterable[Suite], kwargs: Mapping[str, Any], known: Mapping[str, Any], target: str
) -> list[str]:
    """A line for each template argument that moves no prompt.

    `known`: the arguments that the catalog has for this target, which may well be the template's own defaults.
    Raises UserError for an argument of the user's that the template does not read, and for a suite whose system prompt
    it drops.
    """
    suites = list(suites)
    for suite in suites:
        _check_system(tokenizer, suite, kwargs, target)
    samples = [messages for suite in suites for messages in _samples(suite)]
    reads, notes = names_read(tokenizer), []
    for name, value in kwargs.items():
        others = {other: value for other, value in kwargs.items() if other != name}
        if any(_rendered(tokenizer, each, kwargs) != _rendered(tokenizer, each, others) for each in samples):
            continue
        ours = name in known and known[name] == value
        unread = reads is not None and name not in reads
        if unread and not ours:
            hint = meant(name, reads or ())
            raise UserError(f"--template-arg {name}: the chat template of {target} does not read it{hint}")
        if unread:
            notes.append(f"the chat template does not read {name}, which the catalog has for models like {target}")
        elif not ours:
            notes.append(f"--template-arg {name}={value!r} moves no prompt: without it they are the same")
    return notes


def names_read(tokenizer: Any) -> set[str] | None:
    """Names that the tokenizer's chat template reads from outside; None where it is no Jinja source."""
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = getattr(tokenizer, "chat_template", None)
    sources = list(template.values()) if isinstance(template, dict) else [template]
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    names: set[str] = set()
    for source in sources:
        if not isinstance(source, str):
            return None
        try:
            names |= find_undeclared_variables(environment.parse(_GENERATION.sub("", source)))
        except TemplateError:
            return None
    return names


def _samples(suite: Suite) -> Iterator[list[chat.Message]]:
    """The suite's first prompt, and one that follows an answer."""
    first = suite.conversations[0]
    opening: list[chat.Message] = [*suite.opening(first), {"role": "user", "content": first.turns[0]}]
    yield opening
    yield [*opening, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": first.turns[-1]}]


def _check_system(tokenizer: Any, suite: Suite, kwargs: Mapping[str, Any], target: str) -> None:
    for conversation in suite.conversations:
        if not (opening := suite.opening(conversation)):
            continue
        question: chat.Message = {"role": "user", "content": conversation.turns[0]}
        other: chat.Message = {"role": "system", "content": opening[0]["content"] + "\nBe brief."}
        if chat.render(tokenizer, [*opening, question], dict(kwargs)) == chat.render(
            tokenizer, [other, question], dict(kwargs)
        ):
            raise UserError(
                f"suite {suite.name}: the chat template of {target} drops system prompts (that of conversation "
                f"{conversation.id}): remove them, or put them into the first turn"
            )
        return


def _rendered(tokenizer: Any, messages: list[chat.Message], kwargs: Mapping[str, Any]) -> list[int] | str:
    try:
        return chat.render(tokenizer, messages, dict(kwargs))
    except UserError as error:
        return str(error)  # a refusal is an effect too
