"""What a capture's folder holds, and reading it.

    manifest.json            what was captured, and how: `Manifest`; written last
    texts.jsonl              a line for each conversation: its turns' token ids, where their states lie, and its place
                             in the run's order
    states-00001.safetensors the states of some conversations, a row for each token: "final", "layer.n", and "log_p",
                             log p of the token that follows (NaN where that is the prompt's); of float8 states also
                             "final.scale", "layer.n.scale" (`captures.storage`)
    head.safetensors         the target's token embeddings and output map

Row i of a text of n tokens, prompt included, belongs to token x_i; the last token has none, as nothing follows it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speceval.captures.storage import SCALE, Dtype, unpack
from speceval.catalog.schema import Target
from speceval.errors import UserError
from speceval.files import Strict, first_error
from speceval.foreign import read_json
from speceval.measure.replay import digest_of
from speceval.measure.runner import QUEUE_AHEAD
from speceval.store.layout import Key
from speceval.store.schema import RunMeta, SamplingFacts, parse

if TYPE_CHECKING:
    import torch

MANIFEST, TEXTS, HEAD = "manifest.json", "texts.jsonl", "head.safetensors"
VERSION = 1
ABOVE = 1e-3
"""What rounding can put log p above 0."""
IN_FILE = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float8": "F8_E4M3"}
"""What safetensors calls a dtype."""
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
    token_ids: list[int] = Field(min_length=1)
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
            self._check_tensors(shard.file, self._stored(shard.rows))
        _check_file(directory / HEAD, self.manifest.head_bytes)
        whole = (self.manifest.vocab_size, self.manifest.hidden_size)
        self._check_tensors(HEAD, {EMBEDDING: (whole, "")}, {OUTPUT: (whole, "")})
        self._check_texts()

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
        """All turns, in order of the shards."""
        return [text for line in self.lines for text in _texts(line)]

    def one_by_one(self) -> Iterator[Text]:
        """All turns in the order in which a replay with --batch 1 has the engine answer them.

        Where the lines do not tell the run's order it is taken from the shards.
        """
        ordered = sorted(self.lines, key=lambda line: line.get("order", 0))
        due, waiting = deque(_texts(line) for line in ordered if line["turns"]), deque[list[Text]]()
        while due or waiting:
            while due and len(waiting) < QUEUE_AHEAD:
                waiting.append(due.popleft())
            first, *later = waiting.popleft()
            yield first
            if later:
                waiting.append(later)

    def states(self, text: Text) -> dict[str, torch.Tensor]:
        """ "final", "layer.n" [rows, hidden size] and "log_p" [rows] of a text."""
        import torch

        shard = self.manifest.shards[text.shard].file
        file, rows = self._open(shard), slice(text.first_row, text.first_row + text.rows)
        stored = {name: file.get_slice(name)[rows] for name in self._stored(text.rows)}
        due = stored["log_p"][text.prompt - 1 :]
        if (due.isnan() | (due > ABOVE)).any() or any(
            not torch.isfinite(state.float().sum()) for name, state in stored.items() if name != "log_p"
        ):
            raise UserError(f"{self.directory / shard}: holds numbers that are none: copy it again, or capture again")
        return unpack(stored)

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

    def _stored(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every tensor of a shard with so many rows."""
        found = self.manifest
        states = [FINAL, *map(name_of, found.layers)]
        tensors: dict[str, tuple[tuple[int, ...], str]] = {"log_p": ((rows,), IN_FILE["float32"])}
        for name in states:
            tensors[name] = ((rows, found.hidden_size), IN_FILE[found.dtype])
            if found.dtype == "float8":
                tensors[name + SCALE] = ((rows,), IN_FILE["float32"])
        return tensors

    def _check_tensors(
        self,
        name: str,
        due: dict[str, tuple[tuple[int, ...], str]],
        possible: dict[str, tuple[tuple[int, ...], str]] | None = None,
    ) -> None:
        """Raises `UserError` where a file has not the tensors that the manifest speaks of. Reads its header alone."""
        file = self._open(name)
        there = set(file.keys())
        wanted = due | {one: shape for one, shape in (possible or {}).items() if one in there}
        for one, (shape, kind) in wanted.items():
            part = file.get_slice(one) if one in there else None
            if part is None or tuple(part.get_shape()) != shape or (kind and part.get_dtype() != kind):
                has = "none" if part is None else f"{part.get_dtype()} {list(part.get_shape())}"
                raise UserError(
                    f"{self.directory / name}: tensor {one} should be {kind or 'a map'} {list(shape)} by the manifest, "
                    f"it has {has}: copy it again, or capture again"
                )

    def _check_texts(self) -> None:
        """Raises `UserError` where texts.jsonl does not go with manifest and shards."""
        path, spec, sampling = self.directory / TEXTS, self.meta.spec, self.sampling
        if (spec.temperature, spec.top_p, spec.top_k) != (sampling.temperature, sampling.top_p, sampling.top_k):
            raise UserError(f"{self.directory / MANIFEST}: sampling differs from what was asked: the file is damaged")
        rows = [0] * len(self.manifest.shards)
        for text in self.texts:
            if text.shard >= len(rows) or text.first_row != rows[text.shard]:
                raise UserError(f"{path}: {text.key[1]!r} has not the rows that the shards give it: capture again")
            rows[text.shard] += text.rows
            if not 0 <= min(text.tokens) <= max(text.tokens) < self.manifest.vocab_size:
                raise UserError(f"{path}: {text.key[1]!r} has tokens that its target has not: capture again")
        if rows != [shard.rows for shard in self.manifest.shards]:
            raise UserError(
                f"{path}: {sum(rows):,} rows, the shards have another number: copy it again, or capture again"
            )
        told = {text.key: text.tokens[text.prompt :] for text in self.texts}
        if not self.meta.skipped and self.manifest.replay != digest_of(told):
            raise UserError(f"{path}: not the texts that the manifest was written for: copy it again, or capture again")

    def _open(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.directory / name, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.directory / name}: not a whole safetensors file ({error}): capture again") from None


def _texts(line: dict[str, Any]) -> list[Text]:
    """The turns of a line."""
    return [
        Text(
            (*key_of(line), turn["turn"]),
            len(turn["prompt"]),
            [*turn["prompt"], *turn["token_ids"]],
            line["shard"],
            turn["first_row"],
        )
        for turn in line["turns"]
    ]


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
