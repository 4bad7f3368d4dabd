"""`speceval demo`: `small` and, with `--all`, `everything`. Both use only what `import speceval` offers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options


def demo(
    everything: Annotated[bool, typer.Option("--all", help="Every architecture and loss of the zoo.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the demo's runs [default: results/demo, results/demo-all].")
    ] = None,
) -> None:
    """Train the zoo, measure its two EAGLE-3 drafters at T=0 and 1, and compare them."""
    from speceval import engines

    engines.find("vllm").require()
    if everything:
        from speceval.commands.demo import everything as whole

        whole.main(out or Path("results") / "demo-all", options.output())
    else:
        from speceval.commands.demo import small

        small.main(out or Path("results") / "demo", options.output())
