"""What `speceval probe` shows of a server."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

WORKERS = "p and q of every draft (Rao–Blackwell), replay, settings and patches read back"


def table(seen: dict[str, Any]) -> RenderableType:
    """`Seen.as_json` for people."""
    rows = Table("", "", show_header=False)
    rows.add_row("server", " ".join(filter(None, (seen["server"], seen["version"]))))
    rows.add_row("model", seen["model"])
    rows.add_row("evidence", f"{seen['evidence']}: {seen['gives']}")
    if seen["workers"]:
        rows.add_row("workers", WORKERS)
    if seen["runner"]:
        rows.add_row("runner", seen["runner"])
    if seen["totals"]:
        rows.add_row("totals", "on its metrics page: others' traffic is noticed; `speceval watch`")
    for name, value in seen["told"].items():
        rows.add_row(name.replace("_", " "), str(value))
    lines = [f"missing: {one['what']}: {one['flag']}" for one in seen["missing"]]
    return Group(Text(seen["url"], style="bold"), rows, *map(Text, [*lines, *seen["notes"]]))
