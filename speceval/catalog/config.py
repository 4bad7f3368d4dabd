"""A config.json of others, read field by field: a value of another kind is an error that names file and field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speceval.errors import UserError

MOST = 1 << 40
"""Largest size or count that a config.json may state."""

_NESTED = ("text_config", "transformer_layer_config", "model")
"""Where multimodal models, speculators checkpoints and vLLM's EAGLE wrapper keep their language model's fields."""

REMARKS = frozenset({"_name_or_path", "transformers_version", "_commit_hash"})
"""Fields of a config.json that no engine goes by."""

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


class Config(dict[str, Any]):
    """A JSON object that knows where it is from. null counts as absent."""

    def __init__(self, content: Mapping[str, Any], shown: str, prefix: str = "") -> None:
        super().__init__({name: value for name, value in content.items() if value is not None})
        self.shown, self.prefix = shown, prefix

    @classmethod
    def of(cls, content: Mapping[str, Any], shown: str) -> Config:
        """`content` itself if it knows its place, else as of `shown`."""
        return content if isinstance(content, Config) else cls(content, shown)

    def integer(self, *names: str, least: int = 0, most: int = MOST) -> int | None:
        """The first of these fields that is there: a whole number from `least` to `most`. Raises UserError."""
        name = next((name for name in names if name in self), None)
        if name is None:
            return None
        value: int = self._of_kind(name, self[name], int)
        if value < least:
            raise UserError(f"{self._place(name)}: {value}, at least {least} is possible")
        if value > most:
            raise UserError(f"{self._place(name)}: {value:.6g}, at most {most:,} is possible")
        return value

    def text(self, name: str) -> str | None:
        """A field of text, or None."""
        return None if name not in self else str(self._of_kind(name, self[name], str))

    def part(self, name: str) -> Config:
        """A nested object; an empty one where there is none."""
        value = self.get(name, {})
        return Config(self._of_kind(name, value, dict), self.shown, f"{self.prefix}{name}.")

    def integers(self, name: str, most: int = MOST) -> tuple[int, ...]:
        """A list of whole numbers from 0 to `most`, empty where there is none."""
        values = tuple(self._of_kind(name, value, int) for value in self._of_kind(name, self.get(name, []), list))
        if wrong := [value for value in values if not 0 <= value <= most]:
            raise UserError(f"{self._place(name)}: {wrong[0]:.6g}, 0 to {most:,} is possible")
        return values

    def texts(self, name: str) -> list[str]:
        """A list of text, empty where there is none."""
        return [self._of_kind(name, value, str) for value in self._of_kind(name, self.get(name, []), list)]

    def parts(self, name: str) -> list[Config]:
        """A list of objects, empty where there is none."""
        values = self._of_kind(name, self.get(name, []), list)
        return [Config(self._of_kind(name, value, dict), self.shown, f"{self.prefix}{name}.") for value in values]

    def flat(self) -> Config:
        """With the fields of its nested language model, which its own go before."""
        nested: dict[str, Any] = {}
        for name in _NESTED:
            nested |= self.part(name)
        return Config(nested | self, self.shown, self.prefix)

    def _of_kind(self, name: str, value: Any, kind: type) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{self._place(name)}: {_KINDS.get(type(value), 'null')} instead of {_KINDS[kind]}")
        return value

    def _place(self, name: str) -> str:
        return f"{self.shown}: field '{self.prefix}{name}'"
