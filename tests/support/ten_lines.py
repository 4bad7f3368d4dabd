"""The engine of docs/build/add-an-engine.md, as a package of its own would bring it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "build" / "add-an-engine.md"


def install(folder: Path) -> Path:
    """Put the page's module and entry point into `folder`, as pip would: with it on Python's path both are found."""
    blocks = dict(
        re.findall(r"^```(python|toml)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
    entry = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n(\S+) = "(.+)"\n', blocks["toml"])
    assert entry is not None
    information = folder / "ten_lines-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / f"{entry[3].partition(':')[0]}.py").write_text(blocks["python"], encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: ten-lines\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2]} = {entry[3]}\n")
    return folder
