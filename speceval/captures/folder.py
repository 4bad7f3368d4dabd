"""What a capture's folder holds, and reading it.

    manifest.json            what was captured, and how: `Manifest`; written last
    texts.jsonl              a line for each conversation: its turns' token ids, and where their states lie
    states-00001.safetensors the states of some conversations, a row for each token: "final", "layer.n", and "log_p",
                             log p of the token that follows (NaN where that is the prompt's); of float8 states also
                             "final.scale", "layer.n.scale" (`captures.storage`)
    head.safetensors         the target's token embeddings and output map

Row i of a text of n tokens, prompt included, belongs to token x_i; the last token has none, as nothing follows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speceval.captures.storage import Dtype, unpack
from speceval.catalog.schema import Target
from speceval.errors import UserError
from speceval.files import Strict, first_error
from speceval.foreign import read_json
from speceval.protocol import digest
from speceval.store.layout import Key
from speceval.store.schema import RunMeta, SamplingFacts, parse

if TYPE_CHECKING:
    import torch

MANIFEST, TEXTS, HEAD = "manifest.json", "texts.jsonl", "head.safetensors"
VERSION = 1
FINAL = "final"
EMBEDDING, OUTPUT = "embedding", "output"
"""Tensors of `HEAD` [vocabulary, hidden size]; where the target has one for both only the first is there."""


def name_of(layer: int) -> str:
    """What the residual stream after `layer` layers is called."""
    return f"layer.{layer}"


class StorageError(Strict):
    """What storing the states in fewer bits did to log p of the texts' tokens, in nats."""

    tokens: int
    """Of which it was measured."""
    mean: float
    """Mean of the absolute change."""
    largest: float


class Shard(Strict):
    """A file of states."""

    file: str = Field(pattern=r"^[\w.-]+$")
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0)


class Manifest(Strict):
    """manifest.json."""

    version: Literal[1] = 1
    complete: bool
    """Whether all conversations of the run are in."""
    target: Target
    """As the catalog knows it; where it lies on the machine that captured it is of no matter."""
    run: dict[str, Any]
    """run.json of the run whose texts these are."""
    replay: str
    """Hash of the texts, as replays have it."""
    layers: tuple[int, ...]
    """Whose residual streams are kept beside the last state."""
    hidden_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    dtype: Dtype
    """Of the states."""
    storage: StorageError | None = None
    """None where nothing was lost."""
    not_likeliest: int = 0
    """At temperature 0: tokens of the texts that are not what this pass finds likeliest, near ties."""
    shards: tuple[Shard, ...] = ()
    head_bytes: int = 0
    seconds: float = 0.0
    """That the pass took, without the engine's start."""
    head_check: float
    """Mean absolute difference of log p of some tokens between the engine and last state times output map."""

    @property
    def bytes(self) -> int:
        """Of all states, and of embeddings and output map."""
        return self.head_bytes + sum(shard.bytes for shard in self.shards)


class Turn(BaseModel):
    """What a turn of texts.jsonl must have; what else it has is that of the run's journal."""

    model_config = ConfigDict(strict=True, extra="allow")

    turn: int
    prompt: list[int] = Field(min_length=1)
    token_ids: list[int]
    first_row: int = Field(ge=0)


class Line(BaseModel):
    """What a line of texts.jsonl must have."""

    model_config = ConfigDict(strict=True, extra="allow")

    suite: str
    conversation: str
    seed: int
    shard: int = Field(ge=0)
    turns: list[Turn]


@dataclass(frozen=True)
class Text:
    """A turn with what the target said along it."""

    key: tuple[str, str, int, int]
    """Suite, conversation, seed and turn."""
    prompt: int
    """Tokens of the prompt."""
    tokens: list[int]
    """Prompt and text."""
    shard: int
    first_row: int

    @property
    def rows(self) -> int:
        """Tokens that have a state."""
        return len(self.tokens) - 1

    @property
    def places(self) -> int:
        """Verify steps of a replay: every token of the text but the first is due in one."""
        return len(self.tokens) - self.prompt - 1


class Capture:
    """A captured run, open for reading: `read_capture`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        if not self.manifest.complete:
            raise UserError(f"{directory}: the capture is unfinished: `speceval capture` with the same --out goes on")
        self.meta: RunMeta = parse(self.manifest.run, directory / MANIFEST)
        self.lines = list(read_lines(directory))
        for shard in self.manifest.shards:
            _check_file(directory / shard.file, shard.bytes)
        _check_file(directory / HEAD, self.manifest.head_bytes)
        self._check_texts()
        self._check_shapes()

    def _check_texts(self) -> None:
        """Are the texts those that were captured, and has each its own rows? Raises `UserError`."""
        path, found = self.directory / TEXTS, self.manifest
        if digest(sorted((*text.key, text.tokens[text.prompt :]) for text in self.texts))[:16] != found.replay:
            raise UserError(f"{path}: its texts are not those that were captured: copy it again, or capture again")
        ends = [0] * len(found.shards)
        for text in sorted(self.texts, key=lambda text: (text.shard, text.first_row)):
            if text.shard >= len(ends) or text.first_row != ends[text.shard]:
                raise UserError(f"{path}: {' '.join(map(str, text.key))} is not where its states lie: capture again")
            ends[text.shard] += text.rows
            if not all(0 <= token < found.vocab_size for token in text.tokens):
                raise UserError(
                    f"{path}: a token that is none of the {found.vocab_size:,} of the target: capture again"
                )
        if ends != [shard.rows for shard in found.shards]:
            raise UserError(f"{path}: its texts have not as many tokens as there are states: capture again")

    def _check_shapes(self) -> None:
        """Have the files the tensors that the manifest tells of? Raises `UserError`."""
        found = self.manifest
        wanted: dict[str, dict[str, list[int]]] = {HEAD: {EMBEDDING: [found.vocab_size, found.hidden_size]}}
        for shard in found.shards:
            states = {key: [shard.rows, found.hidden_size] for key in (FINAL, *map(name_of, found.layers))}
            wanted[shard.file] = {**states, "log_p": [shard.rows]}
        for name, shapes in wanted.items():
            file = self._open(name)
            for tensor, shape in shapes.items():
                if tensor not in file.keys():  # noqa: SIM118 (no mapping)
                    raise UserError(f"{self.directory / name}: no tensor {tensor} in it: capture again")
                if (lies := file.get_slice(tensor).get_shape()) != shape:
                    raise UserError(f"{self.directory / name}: {tensor} is {lies}, not {shape}: capture again")

    def __repr__(self) -> str:
        found = self.manifest
        return (
            f"<capture {self.directory.name}: {self.meta.spec.target}, {len(self.texts)} texts, last state and layers "
            f"{', '.join(map(str, found.layers)) or 'none'}, {found.dtype}>"
        )

    @property
    def sampling(self) -> SamplingFacts:
        """Sampling parameters of the texts."""
        return self.meta.fingerprint.sampling

    @cached_property
    def texts(self) -> list[Text]:
        """All turns, in order."""
        return [
            Text(
                (line["suite"], line["conversation"], line["seed"], turn["turn"]),
                len(turn["prompt"]),
                [*turn["prompt"], *turn["token_ids"]],
                line["shard"],
                turn["first_row"],
            )
            for line in self.lines
            for turn in line["turns"]
        ]

    def states(self, text: Text) -> dict[str, torch.Tensor]:
        """ "final", "layer.n" [rows, hidden size] and "log_p" [rows] of a text."""
        file = self._open(self.manifest.shards[text.shard].file)
        rows = slice(text.first_row, text.first_row + text.rows)
        return unpack({name: file.get_slice(name)[rows] for name in file.keys()})  # noqa: SIM118 (no mapping)

    @cached_property
    def embedding(self) -> torch.Tensor:
        """The target's token embeddings [vocabulary, hidden size], as stored."""
        found: torch.Tensor = self._open(HEAD).get_tensor(EMBEDDING)
        return found

    @cached_property
    def output(self) -> torch.Tensor:
        """The target's output map [vocabulary, hidden size], as stored."""
        file = self._open(HEAD)
        found: torch.Tensor = file.get_tensor(OUTPUT) if OUTPUT in file.keys() else self.embedding  # noqa: SIM118
        return found

    def _open(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.directory / name, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.directory / name}: not a whole safetensors file ({error}): capture again") from None


def read_manifest(directory: Path) -> Manifest:
    """manifest.json below `directory`. Raises `UserError`."""
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(f"{directory}: no {MANIFEST}: not a capture, which `speceval capture RUN -o DIR` writes")
    try:
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("version"), int) and content["version"] > VERSION:
            raise UserError(f"{path}: version {content['version']}, this speceval reads {VERSION}: update speceval")
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}: the file is damaged") from None


def read_lines(directory: Path) -> Iterator[dict[str, Any]]:
    """The conversations of texts.jsonl. Raises `UserError` for a damaged line."""
    path = directory / TEXTS
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = json.loads(line)
                Line.model_validate(content)
            except (ValueError, RecursionError):
                raise UserError(f"{path}: line {number} is damaged: capture again") from None
            yield content


def key_of(line: dict[str, Any]) -> Key:
    """The conversation of a line."""
    return line["suite"], line["conversation"], line["seed"]


def _check_file(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        state = "is missing" if found is None else f"has {found:,} bytes, not {size:,}"
        raise UserError(f"{path}: {state}: copy it again, or capture again")
