"""`speceval demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options
from speceval.commands.run import measure


def demo(
    everything: Annotated[bool, typer.Option("--all", help="Every architecture and loss of the zoo.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the demo's runs [default: results/demo, results/demo-all].")
    ] = None,
) -> None:
    """Train the zoo, measure its two EAGLE-3 drafters at T=0 and 1, and compare them."""
    from speceval import engines
    from speceval.show import demo as small
    from speceval.show import demo_all

    engines.find("vllm").require()
    demo_module, name = (demo_all, "demo-all") if everything else (small, "demo")
    demo_module.main(out or Path("results") / name, measure, options.output())
