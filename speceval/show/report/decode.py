"""Token ids as text, token by token, without an engine and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from speceval import catalog
from speceval.store.schema import Checkpoint


class Decode(Protocol):
    """Token ids to text; `special` tokens such as the end of a turn are shown or left out."""

    def __call__(self, token_ids: Sequence[int], special: bool = True) -> str: ...


def token_texts(decode: Decode, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined they are the whole text.

    A token's text depends on its neighbours (leading spaces, characters spread over several tokens), so each is decoded
    together with the tokens since the last clean boundary but one, as engines do when they stream. Tokens inside a
    character add nothing; the one that completes it adds the character.
    """
    texts = []
    start, clean = 0, 0  # decode from `start`; what lies before `clean` has been given out
    for end in range(1, len(token_ids) + 1):
        before, now = decode(token_ids[start:clean]), decode(token_ids[start:end])
        if now.endswith("\ufffd") and end < len(token_ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, clean = clean, end
    return texts


def gives(decode: Decode, token_ids: Sequence[int], text: str) -> bool:
    """Whether the tokens are this text, up to spaces: is it the tokenizer that the run had?"""
    return any(_letters(decode(token_ids, special)) == _letters(text) for special in (False, True))


def _letters(text: str) -> str:
    return "".join(text.split())


def decoder(target: Checkpoint) -> Decode | None:
    """A run's target's tokenizer if it lies on this machine (zoo, directory, hub cache), else None."""
    path = _tokenizer_file(target)
    if path is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # the library raises plain Exception for a file that it cannot read
        return None

    def decode(token_ids: Sequence[int], special: bool = True) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=not special))

    return decode


def _tokenizer_file(target: Checkpoint) -> Path | None:
    """tokenizer.json of a run's target, as its fingerprint names it; None also for a name that nothing can have."""
    try:
        return _place_of(target)
    except (ValueError, OSError, RuntimeError):  # no hub id, no path
        return None


def _place_of(target: Checkpoint) -> Path | None:
    if target.model == "zoo":
        from speceval.zoo.build import zoo_root
        from speceval.zoo.recipe import TARGET, Recipe

        return _existing(zoo_root(Recipe()) / TARGET / "tokenizer.json")
    if target.model == "package":
        return _existing(Path(catalog.resolve(target.name, None).target.model) / "tokenizer.json")
    if target.model == "local":
        return _existing(Path(target.name).expanduser() / "tokenizer.json")
    if target.model is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(target.model, "tokenizer.json", revision=target.revision)
    return Path(cached) if isinstance(cached, str) else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
