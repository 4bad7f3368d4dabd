"""Make `notebooks/*.ipynb` from the scripts beside them: convert, execute, keep what a reader sees and nothing else.

    python scripts/notebooks.py [NAME…]       # all of them, or those whose file names begin so

The scripts (jupytext's percent format) are the source. Each notebook is executed in a kernel of this Python, in the
repository's root. Times, counters and random identifiers are left out: the same results give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

from speceval.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
LARGEST = 300_000
"""Bytes of a notebook that may be committed."""
SECONDS = 120
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts() -> list[Path]:
    """The sources, in order."""
    return sorted(NOTEBOOKS.glob("*.py"))


def convert(script: Path) -> Any:
    """The notebook of a script, without outputs: cells numbered, metadata fixed."""
    notebook = jupytext.read(script)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
    return notebook


def execute(notebook: Any) -> Any:
    """Run all cells and keep their outputs. Raises `nbclient.exceptions.CellExecutionError`."""
    client = NotebookClient(notebook, timeout=SECONDS, record_timing=False, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def write(notebook: Any, path: Path) -> int:
    """Write a notebook, whole or not at all; returns its bytes. Raises `ValueError` for one that is too large."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    if str(ROOT) in text:
        raise ValueError(f"{path.name}: an output holds a path of this machine")
    if len(text.encode()) > LARGEST:
        raise ValueError(f"{path.name}: {len(text.encode()):,} bytes, at most {LARGEST:,}: draw smaller figures")
    write_whole(path, text)
    return len(text.encode())


def main() -> None:
    """Convert and execute what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(path.stem for path in scripts()))
    names = parser.parse_args().names
    for script in scripts():
        if not names or any(script.stem.startswith(name) for name in names):
            size = write(execute(convert(script)), script.with_suffix(".ipynb"))
            print(f"{script.stem}: {size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
