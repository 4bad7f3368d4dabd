"""Where the data files of the package are: in a checkout, and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
DATA = {
    "suites": "suites",
    "published": "results/published",
    "upstream": "docs/upstream",
    "drafters": "results/drafters",
}
"""Name -> directory in the repository; pyproject.toml puts it into the wheel as `speceval/data/<name>`."""


def data_directory(name: str) -> Path:
    """The directory of `name`, one of DATA: the built-in suites, published figures, or our reports to vLLM."""
    installed = PACKAGE / "data" / name
    return installed if installed.is_dir() else PACKAGE.parent / DATA[name]
