"""Bad input by the hundred: every command against options, files and stored runs that are damaged, foreign or hostile.

    python scripts/tries.py [--group GROUP] [--part 2/5] [--out results/tries.csv]

Each try is a command line in a directory of its own, in a forked process with a limit on time and memory. No engine is
started: one that would is said to be "reached". A try fails with

    traceback       an exception that nobody expected
    hang, crash     no answer in `SECONDS`, or an end by a signal
    lines           a refusal that is not one line on stderr that begins with "error: "
    secret          a planted token in what is printed
    dirty           control characters, text direction or a CI command in what is printed
    wrong accept    bad input that went through
    wrong reject    good input that did not
    left            a refusal that left files behind

Prints the counts by group, one line for each failure, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 20
MEMORY = 8 << 30
SECRET = "S3CR3T"
"""Stands for a token in the tries: it is to be seen nowhere."""
REACHED = "reached: an engine would start now"
REFUSALS = (3, 4)

Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Try:
    """A command line, what is done to the directory before it, and whether it is to be refused (None: either)."""

    group: str
    name: str
    arguments: tuple[str, ...]
    refuse: bool | None
    prepare: Prepare = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """What came of a try. `failure` is empty, or one of the module's kinds."""

    code: int
    out: str
    err: str
    seconds: float
    failure: str


# -- the world that tries damage ---------------------------------------------------------------------------------------

RUN = ("run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--suite", "own.jsonl")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 512,
}  # fmt: skip
EAGLE3 = CONFIG | {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 384}
MEDUSA = {"architectures": ["MedusaModel"], "model_type": "medusa", "hidden_size": 64, "vocab_size": 512,
          "medusa_num_heads": 3, "medusa_num_layers": 1}  # fmt: skip
SPECULATORS = {
    "speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"], "draft_vocab_size": 384,
    "speculators_config": {"algorithm": "eagle3", "proposal_methods": [{"speculative_tokens": 3}],
                           "verifier": {"name_or_path": "acme/target"}},
    "transformer_layer_config": {**CONFIG, "num_hidden_layers": 1},
}  # fmt: skip


def make_world(root: Path) -> None:
    """Stored runs, a baseline, suites and checkpoint directories, as speceval itself writes them."""
    from speceval.engines.simulated import SimulatedEngine
    from speceval.measure import launch

    os.chdir(root)
    rows = [{"turns": [f"question {n}", "and then?"], "category": "c"} for n in range(8)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("own.yaml").write_text(
        "name: own\nversion: 1\nmax_tokens: 16\ndata:\n  file: own.jsonl\ntemplate: 'Say: {prompt}'\n"
    )
    launch.start_engine = lambda job: SimulatedEngine((0.7,) * job.spec.k, batch=job.spec.batch)  # type: ignore
    launch.fetch = lambda job: job
    for name, draft in (("good", "lk-eagle3"), ("other", "kl-eagle3")):
        command("run", "--target", "zoo", "--draft", draft, "--temp", "1", "--suite", "own.jsonl",
                "--max-tokens", "12", "--out", name)  # fmt: skip
    half_run(Path("good"), Path("half"))
    command("baseline", "good", "-o", "base.json")
    for name, config in (("target", CONFIG), ("drafter", EAGLE3)):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config))
    settings = json.loads(Path("good/run.json").read_text())["spec"] | {"samples": 1000}
    engine = json.loads(Path("good/run.json").read_text())["fingerprint"]["engine"]
    verified = {"schema": 1, "verdict": "exact", "line": "exact: seen", "settings": settings, "engine": engine,
                "missing": [], "checks": [{"kind": "joint", "where": "token 1", "n": 9, "p": 0.5}],
                "counts": {}, "alpha": 0.001, "bias": 0.02, "reference": "x",
                "seconds": {}}  # fmt: skip
    Path("verify.json").write_text(json.dumps(verified))


def half_run(good: Path, half: Path) -> None:
    """A copy of a finished run as it stood before its end: a journal in place of the tables."""
    import pandas as pd

    shutil.copytree(good, half)
    steps: dict[Any, Any] = dict(iter(pd.read_parquet(good / "steps.parquet").groupby(["conversation", "turn"])))
    lines: dict[str, Any] = {}
    for text in (good / "outputs.jsonl").read_text().splitlines():
        row = json.loads(text)
        own = steps[row["conversation"], row["turn"]]
        line = lines.setdefault(
            row["conversation"],
            {name: row.pop(name) for name in ("suite", "conversation", "seed", "category")} | {"turns": []},
        )
        row = {name: value for name, value in row.items() if name not in line}
        line["turns"].append(row | {"steps": own[["drafted", "accepted", "committed"]].to_numpy().tolist()})
    (half / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in list(lines.values())[:5]))
    for name in ("turns.parquet", "steps.parquet", "outputs.jsonl"):
        (half / name).unlink()
    meta = json.loads((half / "run.json").read_text())
    meta["status"] = "running"
    del meta["finished"]
    meta["segments"] = []
    (half / "run.json").write_text(json.dumps(meta))


def command(*arguments: str) -> None:
    """A command that must work."""
    from speceval import cli

    sys.argv = ["speceval", *arguments]
    try:
        cli.main()
    except SystemExit as exit:
        assert not exit.code, (arguments, exit.code)


# -- one try -----------------------------------------------------------------------------------------------------------


def stub_engine() -> None:
    """An engine that would start says so instead."""
    from speceval.errors import UserError
    from speceval.measure import launch

    def reached(job: Any, alone: bool = False) -> Any:
        raise UserError(REACHED)

    launch.start_engine = reached


def attempt(item: Try, world: Path, seconds: float = SECONDS) -> Outcome:
    """Run one try in a forked process, in a copy of `world`."""
    with tempfile.TemporaryDirectory(prefix="try-") as scratch:
        place = Path(scratch) / "world"
        shutil.copytree(world, place, symlinks=True)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(item, place, Path(scratch))
        status, late = _wait(child, seconds)
        out, err = ((Path(scratch) / name).read_bytes().decode("utf-8", "replace") for name in ("out", "err"))
        before = _names(Path(scratch) / "before")
        left = sorted(set(_listing(place)) - before)
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code, out, err, time.monotonic() - started, judge(item, code, out, err, late, left))


def _run(item: Try, place: Path, scratch: Path) -> None:
    """The child: never returns."""
    code = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", encoding="utf-8", errors="strict" if number == 1 else "backslashreplace")
            for number in (1, 2)
        )
        os.chdir(place)
        item.prepare(place)
        (scratch / "before").write_bytes("\0".join(_listing(place)).encode("utf-8", "surrogateescape"))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        from speceval import cli

        sys.argv = ["speceval", *item.arguments]
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, seconds: float) -> tuple[int, bool]:
    end = time.monotonic() + seconds
    pause = 0.002
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status, False
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _listing(place: Path) -> list[str]:
    return [str(Path(folder, name)) for folder, _, names in os.walk(place) for name in names]


def _names(path: Path) -> set[str]:
    return set(path.read_bytes().decode("utf-8", "surrogateescape").split("\0")) if path.exists() else set()


def judge(item: Try, code: int, out: str, err: str, late: bool, left: list[str]) -> str:
    """The failure of a try, or ""."""
    if late:
        return "hang"
    if code < 0:
        return "crash"
    if "Traceback (most recent call last)" in err or code == 70:
        return "traceback"
    if dirty(out) or dirty(err):
        return "dirty"
    if SECRET in out or SECRET in err:
        return "secret"
    reached = REACHED in err
    refused = code in REFUSALS and not reached
    if code in REFUSALS and item.arguments[0] == "validate" and not err:  # says what it found as its answer
        refused = True
    elif code in REFUSALS:
        lines = [line for line in err.splitlines() if not line.startswith(("starting vllm; its log: ", "warning: "))]
        if len(lines) != 1 or not lines[0].startswith("error: ") or lines[0].strip() == "error:":
            return "lines"
    if item.refuse is True and not (refused or (code == 1 and item.arguments[0] in ("show", "validate", "run"))):
        return "wrong accept"
    if item.refuse is False and (refused or code not in (0, 1, 2, 4)):
        return "wrong reject"
    if refused and left:
        return "left"
    return ""


COMMANDS = re.compile(r"^\s*::|##\[|##vso\[", re.MULTILINE)
"""Lines that a CI takes for its own commands."""


def dirty(text: str) -> bool:
    """Whether a terminal or a CI would obey something in `text`."""
    return bool(COMMANDS.search(text)) or any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\u200d" for c in text
    )


# -- all of them -------------------------------------------------------------------------------------------------------


def warm_up() -> None:
    """Import now what each forked process would import again."""
    import datasets
    import huggingface_hub
    import jinja2
    import matplotlib
    import pandas
    import pyarrow.parquet
    import rich.table
    import tokenizers
    import yaml

    import speceval.cli
    import speceval.estimate.comparison
    import speceval.exactness.kernels
    import speceval.measure.launch
    import speceval.show.comparison
    import speceval.show.export
    import speceval.show.plots
    import speceval.show.report  # noqa: F401

    matplotlib.use("Agg")
    _ = datasets, huggingface_hub, jinja2, pandas, pyarrow, rich, tokenizers, yaml


def chosen(tries: Iterable[Try], short: int | None, group: str | None) -> Iterator[Try]:
    """Those of a group; `short`: one in so many, the same ones each time."""
    for number, item in enumerate(tries):
        if (group is None or item.group == group) and (short is None or number % short == 0):
            yield item


def run_all(world: Path, tries: Iterable[Try]) -> Iterator[tuple[Try, Outcome]]:
    """Each try with its outcome."""
    stub_engine()
    for item in tries:
        yield item, attempt(item, world)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group")
    parser.add_argument("--short", type=int, help="one try in so many")
    parser.add_argument("--match", help="names that hold this")
    parser.add_argument("--part", default="1/1", help="i/n: the i-th of n pieces of what is left")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warm_up()
    import tries_cases

    begun, rows = Path.cwd(), []
    with tempfile.TemporaryDirectory(prefix="tries-") as directory:
        world = Path(directory)
        with Path(os.devnull).open("w") as nothing:
            kept = os.dup(1), os.dup(2)
            for number in (1, 2):
                os.dup2(nothing.fileno(), number)
            make_world(world)
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
        os.chdir(begun)
        tries = [item for item in tries_cases.all_tries(world) if (options.match or "") in item.name]
        number, count = map(int, options.part.split("/"))
        for item, outcome in run_all(world, list(chosen(tries, options.short, options.group))[number - 1 :: count]):
            rows.append((item, outcome))
            if outcome.failure:
                last = (outcome.err.strip() or outcome.out.strip() or "-").splitlines()[-1][:160]
                print(f"{outcome.failure}: {item.group}: {item.name} [{outcome.code}] {last!a}", flush=True)
    report(rows)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["group", "try", "exit code", "failure", "seconds"])
            writer.writerows([i.group, i.name, o.code, o.failure, f"{o.seconds:.2f}"] for i, o in rows)
    sys.exit(any(outcome.failure for _, outcome in rows))


def report(rows: list[tuple[Try, Outcome]]) -> None:
    """The counts by group."""
    for group in dict.fromkeys(item.group for item, _ in rows):
        own = [outcome for item, outcome in rows if item.group == group]
        refused = sum(o.code in REFUSALS and REACHED not in o.err and not o.failure for o in own)
        failures = Counter(o.failure for o in own if o.failure)
        seconds = sum(o.seconds for o in own)
        told = dict(failures) or "no failure"
        print(f"{group}: {len(own)} tries, {refused} refused in one line, {told}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
