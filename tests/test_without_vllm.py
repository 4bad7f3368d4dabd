"""The core knows no engine: everything but a run on vLLM works where neither vLLM nor torch can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from speceval.store import read_run

BLOCKED = ("vllm", "torch", "transformers")
CODE = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *further):
        return None if name in {BLOCKED} else self.finder.find_spec(name, *further)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
import contextlib, io, json
from speceval import cli
told = {{}}
for line in sys.stdin.read().splitlines():
    sys.argv, printed = ["speceval", *line.split()], io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            cli.main()
        except SystemExit as stop:
            told[line] = stop.code, printed.getvalue()
assert sys.modules.keys().isdisjoint({BLOCKED})
with open("told.json", "w") as file:
    json.dump(told, file)
"""
RUN = "run --engine simulated --target zoo --temp 1 --suite own.jsonl"
COMMANDS = (
    f"{RUN} --draft lk-eagle3 --out lk",
    f"{RUN} --draft kl-eagle3 --engine-arg rates=0.6 --out kl",
    f"{RUN} --draft lk-eagle3 --replay lk --out again",
    f"{RUN} --draft lk-eagle3 --until 20% --out until",
    "show lk",
    "show kl --json",
    "validate lk",
    "compare kl lk",
    "table kl lk",
    "baseline kl -o base.json",
    "check lk --baseline base.json",
    "explain lk",
    "plot kl lk --kind positions -o figure.png",
    "report kl lk -o page.html",
    "export lk --as lm-eval-style-json -o out.json",
    "ls runs --root .",
    "ls patches",
    "ls suites",
    "ls targets",
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and output of each command; all in one process, which can import none of BLOCKED and has no zoo."""
    folder = tmp_path_factory.mktemp("core")
    rows = [{"turns": [f"question {n}", "and then?"], "category": "c"} for n in range(80)]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-c", CODE]
    environment = os.environ | {"SPECEVAL_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, input="\n".join(COMMANDS), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    weights = [read_run(folder / name).meta.fingerprint.draft.weights for name in ("lk", "kl", "again", "until")]
    assert weights == [None] * 4  # nothing was loaded, so there is nothing to tell of it
    found: dict[str, tuple[int, str]] = json.loads((folder / "told.json").read_text())
    return found


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_a_command_works_without_vllm(told: dict[str, tuple[int, str]], command: str) -> None:
    code, output = told[command]
    assert code == 0 and "Traceback" not in output, output
    assert output.strip() or "-o" in command
