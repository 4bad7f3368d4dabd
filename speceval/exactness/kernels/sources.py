"""Where a vLLM version's Python files come from: the installed package, a source tree or a wheel."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from speceval.errors import UserError
from vllm_patches.versions import DISTRIBUTIONS

INSTALLED = "installed"
MENDS = "give a wheel file, a source tree that holds vllm/, or `installed`"


@dataclass(frozen=True)
class Source:
    """The Python files of one vLLM version. Nothing is imported from it here."""

    name: str
    """As the user gave it."""
    version: str
    kind: str
    """"installed", "tree" or "wheel"."""
    root: Path
    """The wheel, or the directory `vllm` itself."""

    def read(self, path: str) -> str | None:
        """Text of a file such as "v1/sample/rejection_sampler.py", or None if this version has none."""
        if self.kind == "wheel":
            with zipfile.ZipFile(self.root) as wheel:
                inside = f"vllm/{path}"
                return wheel.read(inside).decode(errors="replace") if inside in wheel.namelist() else None
        file = self.root / path
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None

    def files(self) -> list[str]:
        """Paths of all Python files, as `read` takes them, sorted."""
        if self.kind == "wheel":
            with zipfile.ZipFile(self.root) as wheel:
                paths = [name.removeprefix("vllm/") for name in wheel.namelist() if name.startswith("vllm/")]
        else:
            paths = [path.relative_to(self.root).as_posix() for path in self.root.rglob("*.py")]
        return sorted(path for path in paths if path.endswith(".py"))


def find(name: str = INSTALLED, flag: str = "--vllm", stated: str | None = None) -> Source:
    """The source that `name` means: "installed", a wheel file, or a directory that is or holds `vllm`.

    `flag` names it in errors; `stated` is its version where it holds none. Raises `UserError` when there is no vLLM or
    its version cannot be told.
    """
    try:
        return _installed() if name == INSTALLED else _given(name, Path(name).expanduser(), stated)
    except UserError as error:
        raise UserError(f"{flag} {name}: {error}") from None


def _given(name: str, path: Path, stated: str | None) -> Source:
    if not path.exists():
        raise UserError(f"no such file or directory: {MENDS}")
    if path.is_file():
        return Source(name, stated or _wheel_version(path), "wheel", path)
    root = path if path.name == "vllm" and (path / "__init__.py").exists() else path / "vllm"
    if not (root / "__init__.py").exists():
        raise UserError(f"holds no vllm/__init__.py: {MENDS}")
    return Source(name, stated or _tree_version(root), "tree", root)


def _installed() -> Source:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"vLLM is not installed here: {MENDS}")
    root = Path(next(iter(spec.submodule_search_locations)))
    for package in DISTRIBUTIONS:
        try:
            return Source(INSTALLED, version(package), "installed", root)
        except PackageNotFoundError:
            continue
    return Source(INSTALLED, _tree_version(root), "installed", root)


def _wheel_version(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
    except (zipfile.BadZipFile, OSError):
        raise UserError(f"not a wheel (no zip archive): {MENDS}") from None
    if "vllm/__init__.py" not in names:
        raise UserError(f"this wheel holds no vllm/__init__.py: {MENDS}")
    stated = next((m for n in names if (m := re.match(r"vllm[^/]*?-(\d[^/]*)\.dist-info/METADATA$", n))), None)
    if stated is None:
        raise UserError("this wheel states no version (no METADATA): give another one")
    return _release(stated[1])


def _tree_version(root: Path) -> str:
    """From vllm/_version.py, else from the package's metadata beside it."""
    file = root / "_version.py"
    if file.exists():
        stated = re.search(
            r"^__version__ = (?:version = )?'([^']+)'", file.read_text(encoding="utf-8", errors="replace"), re.M
        )
    else:
        beside = " ".join(path.name for path in root.parent.glob("vllm*.dist-info"))
        stated = re.search(r"-(\d\S*)\.dist-info", beside)
    if stated is None:
        raise UserError(
            "no version in vllm/_version.py (a git checkout that was never built has none): give the wheel, or write "
            "that file"
        )
    return _release(stated[1])


def _release(stated: str) -> str:
    """Without the local build tag: 0.32.0+cpu is 0.32.0."""
    return stated.split("+")[0]
