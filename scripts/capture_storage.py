"""What storing a capture's states in fewer bits does to the numbers of drafters.

    python scripts/capture_storage.py CAPTURE --drafts kl-eagle3,kl-mtp --k 5 [--conversations 40]

The zoo's CAPTURE is that of `capture_zoo.py --work DIR` (DIR/capture), the real model's that of
`smollm2/study.py WORK` (WORK/T1/states).

CAPTURE holds the states as the target computed them. They are stored again as `speceval capture --dtype` would, and
each drafter is replayed on all. Adds to results/statistics/capture_storage.csv, in place of what it says of the same
target and drafter: bytes of a token, tau_committed, and how far kept_j moves (mean and largest over all places).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import speceval
from speceval.captures.folder import HEAD, MANIFEST, TEXTS, Capture, StorageError, key_of, read_lines
from speceval.captures.storage import BYTES, Dtype, bytes_of_row, pack
from speceval.estimate import replay
from speceval.files import write_whole
from speceval.measure.replay import digest_of

OUT = Path(__file__).resolve().parent.parent / "results" / "statistics" / "capture_storage.csv"
FEWER: tuple[Dtype, ...] = ("bfloat16", "float8")


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("capture", type=Path)
    parser.add_argument("--drafts", required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--conversations", type=int, help="Only so many.")
    options = parser.parse_args()
    before = list(csv.DictReader(OUT.open())) if OUT.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        rows = list(
            measured(options.capture, options.drafts.split(","), options.k, options.conversations, Path(folder))
        )
    again = {(row["target"], row["drafter"]) for row in rows}
    kept = [row for row in before if (row["target"], row["drafter"]) not in again]
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_whole(OUT, table.getvalue())


def measured(
    source: Path, drafts: list[str], k: int, conversations: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """A row for each drafter and kind of storage."""
    own = speceval.read_capture(source).manifest
    kinds = [own.dtype, *(kind for kind in FEWER if BYTES[kind] < BYTES[own.dtype])]
    captures = {kind: stored_as(source, kind, conversations, folder / kind) for kind in kinds}
    states = 1 + len(own.layers)
    for draft in drafts:
        kept, taus = {}, {}
        for kind, capture in captures.items():
            run = speceval.replay(capture, draft, k=k, out=folder / f"{Path(draft).name}-{kind}")
            kept[kind] = run.steps[[f"kept_{j}" for j in range(1, k + 1)]].to_numpy(float)
            totals = replay.conversation_totals(run.steps).sum()
            taus[kind] = totals["committed"] / totals["steps"]
        for kind in kinds:
            change = np.abs(kept[kind] - kept[own.dtype])
            row = {
                "target": own.target.name,
                "drafter": Path(draft).name,
                "k": k,
                "places": int(np.isfinite(change).sum()),
                "states": kind,
                "bytes": states * bytes_of_row(own.hidden_size, kind),
                "tau": f"{taus[kind]:.6f}",
                "kept_mean": f"{np.nanmean(change):.2e}",
                "kept_largest": f"{np.nanmax(change):.2e}",
            }
            print(row, flush=True)
            yield row


def stored_as(source: Path, kind: Dtype, conversations: int | None, into: Path) -> Capture:
    """The capture in `source` with its states stored as `kind`, at most so many conversations of its first shard."""
    into.mkdir()
    manifest = json.loads((source / MANIFEST).read_text())
    lines = list(read_lines(source))
    if conversations is not None:
        lines = [line for line in lines if line["shard"] == 0][:conversations]
        turns = [(key_of(line), turn) for line in lines for turn in line["turns"]]
        rows = sum(len(turn["prompt"]) + len(turn["token_ids"]) - 1 for _, turn in turns)
        manifest["shards"] = [manifest["shards"][0] | {"rows": rows}]
        manifest["replay"] = digest_of({(*key, turn["turn"]): turn["token_ids"] for key, turn in turns})
    (into / TEXTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(source / HEAD, into / HEAD)
    for shard in manifest["shards"]:
        tensors: dict[str, torch.Tensor] = {}
        for name, state in load_file(source / shard["file"]).items():
            part = state[: shard["rows"]]
            tensors |= {name: part} if name == "log_p" else pack(name, part, kind)
        save_file(tensors, into / shard["file"])
        shard["bytes"] = (into / shard["file"]).stat().st_size
    if kind != manifest["dtype"]:
        manifest["storage"] = StorageError(
            tokens=0, mean=0.0, largest=0.0
        ).model_dump()  # lossy; how much is asked here
    (into / MANIFEST).write_text(json.dumps(manifest | {"dtype": kind}))
    return speceval.read_capture(into)


if __name__ == "__main__":
    main()
