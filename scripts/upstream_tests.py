"""vLLM's own tests with the patches and without: `python scripts/upstream_tests.py SDIST [FILE...] [--write]`.

SDIST is an unpacked source distribution of the vLLM that is installed, which holds its tests:

    pip download --no-deps --no-binary :all: --no-build-isolation vllm==VERSION

unpacks one below pip's temporary folder and then fails for want of a compiler (`--no-clean` keeps it). The tests need
`pip install tblib pytest-asyncio`. FILES are paths below SDIST's tests, by default those of sampling and speculative
decoding that need neither a hub nor a GPU.

Each file is run twice, in processes of its own, as the same command with `SPECEVAL_PATCHES` 1 and 0. Prints what each
side passes and every test that only one passes. `--write` keeps it in results/verify, for the docs' page on patches,
file by file; without FILES the same command goes on where it was left.
Exit code 1 if a test passes without the patches alone that `INHERENT` does not list.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from speceval.errors import UserError
from speceval.files import write_whole

RESULT = Path(__file__).resolve().parent.parent / "results" / "verify" / "upstream.json"
FILES = (
    "v1/sample/test_rejection_sampler.py",
    "v1/sample/test_topk_topp_sampler.py",
    "v1/sample/test_sampler.py",
    "v1/logits_processors/test_correctness.py",
    "v1/spec_decode/test_dflash_lookahead.py",
    "v1/spec_decode/test_dflash_prepare_inputs.py",
    "v1/spec_decode/test_dynamic_sd.py",
    "v1/spec_decode/test_eagle.py",
    "v1/spec_decode/test_eagle_step_kernel.py",
    "v1/spec_decode/test_extract_hidden_states.py",
    "v1/spec_decode/test_lilicorr.py",
    "v1/spec_decode/test_llm_base_proposer.py",
    "v1/spec_decode/test_llm_base_proposer_sampling.py",
    "v1/spec_decode/test_mtp.py",
    "v1/spec_decode/test_mtp_structured_output.py",
    "v1/spec_decode/test_ngram.py",
    "v1/spec_decode/test_request_acceptance.py",
    "v1/spec_decode/test_vocab_mapping.py",
    "v1/structured_output/test_guidance_negative_draft_tokens.py",
    "v1/structured_output/test_scheduler_speculative_padding.py",
    "v1/worker/test_gpu_input_batch.py",
    "v1/worker/test_gpu_model_runner.py",
    "v1/worker/test_grammar_invalid_drafts.py",
)
INHERENT = {
    "test_propose_stores_probabilistic_draft_probs": (
        "replaces a function that the patch `v1-draft-sampling` does not call, and passes no top-k and top-p"
    ),
}
"""Tests that pass without the patches alone, for what they mock -> why that is so."""
NEITHER = (
    "What neither side passes wants a model's files from the hub, `torchvision` (one test) or a GPU, without which "
    "`test_eagle.py` and `test_eagle_step_kernel.py` do not even load."
)
"""Why tests fail or are skipped on both sides."""
BEGINS = """
import vllm.plugins
from vllm.platforms import current_platform
vllm.plugins.load_general_plugins()
if hasattr(current_platform, "register_triton_kernel_overrides"):  # stock kernels are stubs before
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
"""
"""What vLLM's own processes do first and its tests do not."""
SECONDS = 1800
PASSED = "passed"
Outcomes = dict[str, str]
"""Test -> passed, failed, error or skipped."""
Row = dict[str, Any]
"""A file of tests with the counts of both sides, `patched` and `stock`, and the tests that one of them alone passes."""


def main(arguments: list[str] | None = None) -> int:
    """Print both sides and what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    try:
        _check(options.sdist, options.files or FILES)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    rows = [] if options.files or not options.write else _kept()
    done = {one["file"] for one in rows}
    for file in options.files or [file for file in FILES if file not in done]:
        patched, stock = (run(options.sdist, file, patches) for patches in (True, False))
        rows.append(row(file, patched, stock))
        print(line(rows[-1]), flush=True)
        if options.write:
            _keep(rows[-1])
    for one in rows:
        for name in one["only_patched"]:
            print(f"passes with the patches alone: {one['file']}::{name}")
        for name in one["only_stock"]:
            print(f"passes without the patches alone: {one['file']}::{name}{_why(name)}")
    return int(any(not _why(name) for one in rows for name in one["only_stock"]))


def run(sdist: Path, file: str, patches: bool) -> Outcomes:
    """What became of each test of a file, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
        tests = Path(folder) / "tests"
        shutil.copytree(sdist / "tests", tests, symlinks=True)
        conftest = tests / "conftest.py"
        conftest.write_text(BEGINS + conftest.read_text(encoding="utf-8"), encoding="utf-8")
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            f"tests/{file}",
            "-q",
            f"--junitxml={report}",
            "-p",
            "no:cacheprovider",
        ]
        environment = os.environ | {"SPECEVAL_PATCHES": str(int(patches)), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
        if not report.exists():
            raise SystemExit(f"{file}: pytest did not run: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        return outcomes(report.read_text())


def outcomes(report: str) -> Outcomes:
    """Outcome of each test in a JUnit report."""
    by_name: Outcomes = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        by_name[str(case.get("name"))] = {"failure": "failed"}.get(kinds[0], kinds[0]) if kinds else PASSED
    return by_name


def row(file: str, patched: Outcomes, stock: Outcomes) -> Row:
    """Both sides of a file, and what one of them alone passes."""
    return {
        "file": file,
        "patched": dict(Counter(patched.values())),
        "stock": dict(Counter(stock.values())),
        "only_patched": only(patched, stock),
        "only_stock": only(stock, patched),
    }


def only(one: Outcomes, other: Outcomes) -> list[str]:
    """Tests that pass on one side and do not on the other."""
    return [name for name, outcome in one.items() if outcome == PASSED != other.get(name)]


def line(one: Row) -> str:
    """A row for a reader."""
    return f"{one['file']}: with the patches {told(one['patched'])}; without {told(one['stock'])}"


def told(counts: dict[str, int]) -> str:
    """Outcomes in words."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "nothing ran"


def table() -> str:
    """What `--write` kept, as Markdown."""
    kept = json.loads(RESULT.read_text())
    rows = [["vLLM's tests", "run", "pass as released", "pass with the patches", "with alone", "without alone"]]
    rows += [_cells(f"`{one['file']}`", [one]) for one in kept["files"] if _differs(one)]
    rows.append(_cells("the other files", [one for one in kept["files"] if not _differs(one)]))
    rows.append(_cells("all", kept["files"]))
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    alone = [name for one in kept["files"] for name in one["only_stock"]]
    why = "".join(f" `{name}` {_why(name).removeprefix(': ')}." for name in alone)
    note = (
        f"vLLM {kept['vllm']} on a CPU, {len(kept['files'])} of {len(FILES)} files: "
        "`python scripts/upstream_tests.py SDIST --write`."
    )
    return "\n".join([lines[0], rule, *lines[1:], "", note + (f" Without alone:{why}" if why else "") + f" {NEITHER}"])


def _kept() -> list[Row]:
    """The rows in the file that are of the installed vLLM, in the order of `FILES`."""
    content: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = content.get("files", []) if content.get("vllm") == _version() else []
    return sorted(rows, key=lambda one: FILES.index(one["file"]) if one["file"] in FILES else len(FILES))


def _keep(new: Row) -> None:
    """Put a row into the file, in place of the one that it had."""
    others = [one for one in _kept() if one["file"] != new["file"]]
    write_whole(RESULT, json.dumps({"vllm": _version(), "files": [*others, new]}, indent=1) + "\n")


def _cells(name: str, files: list[Row]) -> list[str]:
    def total(side: str, *outcomes: str) -> int:
        return sum(count for one in files for outcome, count in one[side].items() if outcome in outcomes)

    run = total("stock", PASSED, "failed", "error")
    alone = (sum(len(one[side]) for one in files) for side in ("only_patched", "only_stock"))
    return [name, str(run), str(total("stock", PASSED)), str(total("patched", PASSED)), *map(str, alone)]


def _differs(one: Row) -> bool:
    return bool(one["only_patched"] or one["only_stock"])


def _why(name: str) -> str:
    reason = INHERENT.get(name.partition("[")[0])
    return f": {reason}" if reason else ""


def _version() -> str:
    from importlib.metadata import version

    from vllm_patches.versions import DISTRIBUTIONS

    for name in DISTRIBUTIONS:
        if importlib.util.find_spec("vllm") is not None:
            try:
                return version(name)
            except ImportError:
                continue
    raise UserError("vLLM is not installed")


def _check(sdist: Path, files: Iterable[str]) -> None:
    for name in ("tblib", "pytest_asyncio", "vllm"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed, vLLM's tests need it")
    for file in ("conftest.py", *files):
        if not (sdist / "tests" / file).is_file():
            raise UserError(f"{sdist / 'tests' / file}: no such file: is SDIST an unpacked source distribution?")


if __name__ == "__main__":
    sys.exit(main())
