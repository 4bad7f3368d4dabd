"""Which checkpoint a run used: hashes that say so, of weights, configuration, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from speceval.catalog.config import REMARKS
from speceval.measure.digests import ends_digest, file_digest

WHOLE_LIMIT = 8 << 30
"""Checkpoints up to this many bytes are hashed whole; larger ones by size, head and tail of each file."""

UNKNOWN = "commit:unknown"
"""Weights of a hub checkpoint that the local cache does not hold."""

_ENDS = 1 << 20
_CONFIG = ("config.json", "generation_config.json", "hf_quant_config.json", "quantize_config.json", "params.json")
_INDEX, _CODE = "*.index.json", "*.py"
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
_TEMPLATE = ("chat_template*", "additional_chat_templates/*")


def weights_hash(checkpoint: str, revision: str | None = None) -> str:
    """Hash of a checkpoint's weight files.

    A directory: `sha256:…` over names and contents; above 8 GiB `sha256-ends:…` over names, sizes and the first and
    last MiB of each file. A hub id: `commit:…`, the snapshot that the local cache resolves it to.
    """
    directory = Path(checkpoint)
    if not directory.is_dir():
        return f"commit:{_cached_commit(checkpoint, revision)}"
    files = sorted(path for path in directory.iterdir() if path.suffix in {".safetensors", ".bin", ".pt"})
    whole = sum(path.stat().st_size for path in files) <= WHOLE_LIMIT
    total = hashlib.sha256()
    for path in files:
        total.update(
            path.name.encode() + b"\0" + bytes.fromhex(file_digest(path) if whole else ends_digest(path, _ENDS))
        )
    return f"sha256{'' if whole else '-ends'}:{total.hexdigest()[:32]}"


def config_hash(checkpoint: str, revision: str | None = None) -> str | None:
    """Hash of a checkpoint's configuration: what the files say, however they are written. None if it is not here."""
    directory = files_of(checkpoint, revision)
    return None if directory is None else _hash(directory, (*_CONFIG, _INDEX, _CODE))


def tokenizer_hash(checkpoint: str, revision: str | None = None) -> str | None:
    """Hash of a checkpoint's tokenizer without its chat template. None if it is not here."""
    directory = files_of(checkpoint, revision)
    return None if directory is None else _hash(directory, _TOKENIZER, without="chat_template")


def template_hash(checkpoint: str, revision: str | None = None) -> str | None:
    """Hash of a checkpoint's chat templates, wherever they stand. None if it is not here."""
    directory = files_of(checkpoint, revision)
    if directory is None:
        return None
    inside = _read(directory / "tokenizer_config.json")
    template = inside.get("chat_template") if isinstance(inside, dict) else None
    return _digest([json.dumps(template, sort_keys=True), _hash(directory, _TEMPLATE)])


def files_of(checkpoint: str, revision: str | None) -> Path | None:
    """Where a checkpoint's files are: its directory, or its snapshot in the hub's cache. None if they are not here."""
    directory = Path(checkpoint)
    if directory.is_dir():
        return directory
    snapshot = _folder(checkpoint) / "snapshots" / _cached_commit(checkpoint, revision)
    return snapshot if snapshot.is_dir() else None


def _hash(directory: Path, patterns: Iterable[str], without: str = "") -> str:
    files = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return _digest(f"{path.relative_to(directory).as_posix()} {_said(path, without)}" for path in sorted(files))


def _said(path: Path, without: str) -> str:
    """What a file says: small JSON objects are read, so that their spelling and remarks do not count."""
    content = _read(path) if path.stem.endswith(("config", "map")) else None
    if not isinstance(content, dict):
        return file_digest(path)
    return json.dumps({k: v for k, v in content.items() if k not in REMARKS and k != without}, sort_keys=True)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()[:32]


def _folder(model: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"


def _cached_commit(model: str, revision: str | None) -> str:
    folder = _folder(model)
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text(errors="replace").strip()
    return revision if revision and (folder / "snapshots" / revision).is_dir() else "unknown"
