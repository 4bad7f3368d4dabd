"""Which weights a run used: a hash that says so, from whatever the checkpoint offers."""

from __future__ import annotations

import hashlib
from pathlib import Path

WHOLE_LIMIT = 8 << 30
"""Checkpoints up to this many bytes are hashed whole; larger ones by size, head and tail of each file."""

_ENDS = 1 << 20


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
        total.update(path.name.encode() + b"\0" + (_content(path) if whole else _ends(path)))
    return f"sha256{'' if whole else '-ends'}:{total.hexdigest()[:32]}"


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _ends(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return hashlib.sha256(str(size).encode() + head + file.read()).digest()


def _cached_commit(model: str, revision: str | None) -> str:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text(errors="replace").strip()
    return revision if revision and (folder / "snapshots" / revision).is_dir() else "unknown"
