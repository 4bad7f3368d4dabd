"""The real model's study: what the target says to the benchmarks, once, and every drafter along it without the target.

    python scripts/smollm2/study.py WORK [--temps 1,0] [--data-dir DIR] [--second OUT] [--store]

For each temperature: the target's own answers (n-gram drafts, which cost next to nothing and leave its law as it is), a
capture of them, and a replay of each drafter on it, each by the command that is printed; what is there is not done
again, so the same command resumes. WORK takes some hundred bytes for each bit of a result (2 GB): it is not what is
kept. --second: OUT of `train.py` with --seed 1, whose drafters are measured too. --store: write what the docs' numbers
are made of, expected steps and committed tokens of each answer, into results/reference/smollm2.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from speceval import read_run
from speceval.catalog import fetch, resolve
from speceval.catalog.packed import write_checkpoint
from speceval.estimate import replay
from speceval.files import write_whole
from speceval.store import StoredRun

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "results" / "reference" / "smollm2"
TARGET = "smollm2-135m-q4"
BATCH = 64
HEADS = ("kl-medusa", "lk-medusa", "kl-mlp", "lk-mlp")
LAYERS = ("kl-eagle3", "lk-eagle3", "lk-alpha-eagle3", "tv-eagle3")
GREEDY = ("kl-eagle3-greedy", "lk-eagle3-greedy")
"""The same drafters where they draft their likeliest tokens: at temperature 1 alone."""
LONGER = ("kl-eagle3-long", "lk-eagle3-long")
"""Of a longer training on more answers: at temperature 1 and sampling seed 0 alone."""
SECOND = {f"{draft}-seed1": draft for draft in LAYERS}
"""Drafters of the second training seed, and what they are otherwise."""
FILES = {draft: draft.replace("lk-eagle3", "lk-lambda-eagle3") for draft in LAYERS}
"""What `train.py` calls them."""
K = {"eagle3": 7, "medusa": 5, "mlp": 5}
"""Draft positions that are measured; fewer can be read off."""
PART, K_OF_PARTS = 32, 5
"""Tokens of a part of an answer, for tau along it, and the K at which it is kept."""


@dataclass(frozen=True)
class Text:
    """Prompts whose answers are one text."""

    name: str
    temperature: float
    suites: str
    max_tokens: int
    """Longest answer of a turn."""
    seed: int = 0
    """Sampling seed of the answers."""

    def run(self, work: Path, data_dir: Path | None) -> list[str]:
        """The command that makes it."""
        seeds = ["--seeds", str(self.seed)] if self.seed else []
        answers = ["--max-tokens", str(self.max_tokens), "--batch", str(BATCH), *seeds, *_data(data_dir)]
        what = ["--target", TARGET, "--draft", "ngram", "--k", "5", "--temp", f"{self.temperature:g}"]
        return ["run", *what, "--suite", self.suites, *answers, "--out", str(work / self.name / "text")]

    def capture(self, work: Path, data_dir: Path | None) -> list[str]:
        """The command that captures it."""
        folder = work / self.name
        return ["capture", str(folder / "text"), "--layers", "10,20,30", *_data(data_dir), "-o", str(folder / "states")]

    def replay(self, work: Path, draft: str) -> list[str]:
        """The command that measures a drafter on it."""
        given = str(work / "drafters" / draft) if draft in SECOND else draft.removesuffix("-greedy")
        folder, k = work / self.name, str(K_OF_PARTS if draft in GREEDY else K[kind(draft)])
        how = ["--drafting", "greedy"] if draft in GREEDY else []
        return ["replay", str(folder / "states"), "--draft", given, "--k", k, *how, "-o", str(folder / draft)]


TEXTS = (
    Text("T1", 1.0, "mt_bench,humaneval", 128),
    Text("T1-gsm8k", 1.0, "gsm8k", 128),
    Text("T0", 0.0, "mt_bench,humaneval", 128),
    Text("T0-gsm8k", 0.0, "gsm8k", 128),
    Text("T1-seed1", 1.0, "mt_bench,humaneval", 128, seed=1),
    Text("T1-seed2", 1.0, "mt_bench,humaneval", 128, seed=2),
)


def kind(draft: str) -> str:
    """A drafter's architecture."""
    return next(name for name in K if name in draft)


def _data(data_dir: Path | None) -> list[str]:
    return [] if data_dir is None else ["--data-dir", str(data_dir)]


def measure(text: Text, work: Path, drafters: list[str], data_dir: Path | None) -> None:
    """All that is not there yet."""
    folder = work / text.name
    if not _complete(folder / "text"):
        command(text.run(work, data_dir))
    if not all(_complete(folder / draft) for draft in drafters):
        command(text.capture(work, data_dir))
    for draft in drafters:
        if not _complete(folder / draft):
            command(text.replay(work, draft))


def command(words: list[str]) -> None:
    """Run `speceval WORDS` in a process of its own. Raises `SystemExit` where it fails."""
    print(f"$ speceval {shlex.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "speceval", *words], stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(code)


def _complete(directory: Path) -> bool:
    return (directory / "run.json").is_file() and read_run(directory).meta.status == "complete"


def unpack(second: Path, work: Path) -> None:
    """Make the second seed's drafters checkpoints."""
    target = Path(fetch(resolve(TARGET, None)).target.model)
    for name, draft in SECOND.items():
        directory = work / "drafters" / name
        if not (directory / "config.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            write_checkpoint(second / f"{FILES[draft]}.safetensors", target, directory)


def totals(run: StoredRun) -> pd.DataFrame:
    """Expected `steps` and `committed` tokens of every answer, at each K up to the replay's, and by part of it.

    Columns: suite, conversation, turn, category, k, part: 0 is the whole answer; part n, of `K_OF_PARTS` alone, are
    the steps that start at its n-th `PART` tokens.
    """
    answer = ["suite", "conversation", "turn"]
    place = run.steps["step"].to_numpy()  # the first step emits the second token
    parts = []
    for k in range(1, replay.depth(run.steps) + 1):
        rows = replay.expected(replay.up_to(run.steps, k))
        of_place = rows[[*answer, "steps"]].assign(committed=rows["steps"] + rows["accepted"])
        parts.append(of_place.groupby(answer, sort=False).sum().assign(k=k, part=0).reset_index())
        if k == K_OF_PARTS:
            of_place["part"] = place // PART + 1
            parts.append(of_place.groupby([*answer, "part"], sort=False).sum().assign(k=k).reset_index())
    found = pd.concat(parts, ignore_index=True).merge(run.turns[[*answer, "category"]], on=answer, how="left")
    small = {"turn": "int8", "k": "int8", "part": "int8", "steps": "float32", "committed": "float32"}
    names = dict.fromkeys(("suite", "conversation", "category"), "category")
    return found[[*answer, "category", "k", "part", "steps", "committed"]].astype(small | names)


def store(text: Text, work: Path) -> Iterator[Path]:
    """Write what is kept of a text and of every drafter that was measured on it; the paths."""
    folder, kept = work / text.name, STORED / text.name
    kept.mkdir(parents=True, exist_ok=True)
    for directory in sorted(path.parent for path in folder.glob("*/run.json")):
        run = read_run(directory)
        if run.meta.status != "complete":
            continue
        table = run.turns if directory.name == "text" else totals(run)
        words = text.run(Path("WORK"), None) if directory.name == "text" else text.replay(Path("WORK"), directory.name)
        record = run.meta.published().as_json() | {"command": ["speceval", *words]}
        write_whole(kept / f"{directory.name}.parquet", partial(_parquet, table))
        write_whole(kept / f"{directory.name}.json", json.dumps(record, indent=1) + "\n")
        yield kept / f"{directory.name}.parquet"
    manifest = folder / "states" / "manifest.json"
    if manifest.is_file():
        content = json.loads(manifest.read_text())
        names = (
            "layers",
            "dtype",
            "storage",
            "not_likeliest",
            "shards",
            "head_bytes",
            "seconds",
            "head_check",
            "replay",
        )
        facts: dict[str, Any] = {name: content[name] for name in names}
        write_whole(kept / "capture.json", json.dumps(facts, indent=1) + "\n")


def _parquet(table: pd.DataFrame, path: Path) -> None:
    table.to_parquet(path, index=False, compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--texts", default=",".join(text.name for text in TEXTS), help="which, in which order")
    parser.add_argument("--drafters", help="which [default: all that are there]")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SPECEVAL_DATA_DIR"))
    parser.add_argument("--second", type=Path, help="drafters of the second training seed")
    parser.add_argument("--store", action="store_true", help="write results/reference/smollm2, measure nothing")
    options = parser.parse_args()
    texts = {text.name: text for text in TEXTS}
    for name in options.texts.split(","):
        if options.store:
            for path in store(texts[name], options.work):
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
            continue
        if options.second is not None:
            unpack(options.second, options.work)
        greedy = GREEDY if texts[name].temperature else ()
        longer = LONGER if texts[name].temperature and not texts[name].seed else ()
        drafters = [*LAYERS, *longer, *(SECOND if options.second is not None else ()), *greedy, *HEADS]
        chosen = options.drafters.split(",") if options.drafters else drafters
        measure(texts[name], options.work, chosen, options.data_dir and Path(options.data_dir))


if __name__ == "__main__":
    main()
