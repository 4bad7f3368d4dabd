"""`speceval tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from speceval.commands import options


@options.of_spec("runner", "engine_args")
def tune(
    request: dict[str, Any],
    target: Annotated[str, typer.Option(help="Catalog name, hub id or directory of the target.")],
    draft: Annotated[str, typer.Option(help="Drafters, comma-separated.")],
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,4,16,64",
    k: Annotated[str, typer.Option(help="Draft tokens of a step, as far as each drafter goes [default: 1-8].")] = "",
    temp: Annotated[float, typer.Option(help="Temperature of the target, and of sampled drafts.")] = 1.0,
    suite: Annotated[str, typer.Option(help="Whose prompts are generated [default: mt_bench].")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer [default: the suite's own].")] = None,
    bursts: Annotated[int, typer.Option(help="Bursts of 16 steps that are timed at each batch size.")] = 32,
    answers: Annotated[int, typer.Option(help="Answers of the target that acceptance is told from.")] = 64,
    beside: Annotated[
        bool | None, typer.Option(help="Time the target alone in turns with each engine [default: on a CPU].")
    ] = None,
    confirm: Annotated[bool, typer.Option(help="Time the best of each batch size beside the target alone.")] = True,
    engine: Annotated[str, typer.Option(help="What generates: vllm, simulated, or another package's.")] = "vllm",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the suites' data files.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write [default: results/tune].")] = None,
    plot: Annotated[Path | None, typer.Option(help="File of a heat map, .png or .pdf.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the drafter and the K that give the most tokens per second at each batch size."""
    from inspect import unwrap

    from speceval.api.tuning import tune as by_parameter

    result = unwrap(by_parameter)(  # its errors name flags
        target,
        options.split(draft, "--draft"),
        batches=options.seeds(batch, "--batch"),
        ks=options.seeds(k, "--k") if k else (),
        temperature=temp,
        suite=suite,
        max_tokens=max_tokens,
        bursts=bursts,
        answers=answers,
        beside=beside,
        confirm=confirm,
        engine=engine,
        **request,
        data_dir=data_dir,
        out=out,
        plot=plot,
        progress=True,
    )
    options.show(result, as_json)
