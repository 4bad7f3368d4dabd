"""Create or refresh `.venv` with speceval, vLLM for this machine, and the tools that check code and docs.

Run by `make`; needs nothing but a Python 3.11–3.13 with `venv` and `pip`. Quick when nothing changed.

Two things make this more than one `pip install`:

* beside a CPU-only torch the package index serves a CUDA build of torchvision that breaks `import vllm`, so
  torchvision and its sisters are left out: uv reads that from `[tool.uv]` in pyproject.toml, pip cannot;
* the `+cpu` build of torch is not on the ordinary index. It is taken from pip's configured `find-links` when it
  lies there, else from PyTorch's own index, which uv knows by the name of the backend.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".speceval-setup"
# The machine's own certificates, as pip uses them (the setting has had two names).
UV_ENVIRONMENT = {"UV_NO_PROGRESS": "1", "UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
SUPPORTED = ((3, 11), (3, 12), (3, 13))


def main() -> int:
    """Set the environment up; returns the exit code."""
    if sys.version_info[:2] not in SUPPORTED:
        return _fail(f"Python {sys.version.split()[0]} is not supported: use `make PYTHON=python3.11` (up to 3.13)")
    extra = "gpu" if shutil.which("nvidia-smi") else "cpu"
    fingerprint = _fingerprint(extra)
    if STAMP.exists() and STAMP.read_text() == fingerprint:
        return 0
    print(f"setting up .venv with the extras {extra},ray,dev,docs (once, about half a minute) ...", flush=True)
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    if _run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv>=0.6"]):
        return _fail("pip could not install uv: is a package index reachable? (pip's own lines are above)")
    code = _install(extra)
    if code == 0:
        STAMP.write_text(fingerprint)
    return code


def _install(extra: str) -> int:
    install: list[str | Path] = [
        PYTHON,
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        PYTHON,
        "-e",
        f".[{extra},ray,dev,docs]",
    ]
    attempts = [[*install, *pip_options(PYTHON)]]
    if extra == "cpu":
        attempts = [[*attempt, "torch==2.13.0+cpu"] for attempt in attempts]
        attempts.append([*install, "--torch-backend", "cpu"])
    for attempt in attempts:
        if _run(attempt) == 0:
            return 0
    if extra == "cpu":
        return _fail(
            "could not install vLLM for CPU. Its torch (2.13.0+cpu) was found neither in pip's find-links "
            "(set PIP_FIND_LINKS to a folder that holds the wheel) nor in PyTorch's CPU index (is it reachable?)"
        )
    return _fail("could not install vLLM (uv's own lines are above)")


def pip_options(python: str | Path) -> list[str]:
    """The index and find-links that `python`'s pip is configured with, as uv options: uv does not read them itself."""
    index, links = _pip_setting(python, "index-url"), _pip_setting(python, "find-links")
    options = ["--default-index", index[0]] if index else []
    return options + [option for place in links for option in ("--find-links", place)]


def _pip_setting(python: str | Path, name: str) -> list[str]:
    """Values of one pip setting. The account's own configuration counts even if HOME points elsewhere."""
    values: list[str] = []
    for home in dict.fromkeys((os.environ.get("HOME", ""), pwd.getpwuid(os.getuid()).pw_dir)):
        for level in (":env:.", "global."):
            found = subprocess.run(
                [python, "-m", "pip", "config", "get", level + name],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "HOME": home},
            )
            values += found.stdout.split()
    return list(dict.fromkeys(values))


def _fingerprint(extra: str) -> str:
    text = (ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes() + sys.version.encode()
    return f"{extra} {ROOT} {hashlib.sha256(text).hexdigest()}"


def _run(command: list[str | Path]) -> int:
    return subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, **UV_ENVIRONMENT}).returncode


def _fail(message: str) -> int:
    print(f"set-up failed: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
