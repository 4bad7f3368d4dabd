"""`speceval capture` and `speceval replay`: drafters measured without their target."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speceval import terminal
from speceval.commands import options
from speceval.errors import UserError

DTYPES = ("float32", "bfloat16", "float16", "float8")


def capture(
    run: options.RunDirectory,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    layers: Annotated[
        str, typer.Option(help="Inner layers to keep, as 2,16,29, or none [default: what the run's drafter reads].")
    ] = "",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="How states are stored [default: what the target computes in].", **options.choices(lambda: DTYPES)
        ),
    ] = None,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="The same as --dtype bfloat16.")] = False,
    float8: Annotated[
        bool, typer.Option("--float8", help="The same as --dtype float8: eight bits and a scale for each state.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Requests that the engine reads at once [default: the run's].")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the suites' data files.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Read a run's texts once with its target and keep what drafters need to know: for `speceval replay`.

    The same command resumes an interrupted capture.
    """
    from speceval.api.capturing import captured

    numbers = None if not layers else () if layers == "none" else options.seeds(layers, "--layers")
    named = [*([dtype] if dtype else []), *(["bfloat16"] if bfloat16 else []), *(["float8"] if float8 else [])]
    if len(set(named)) > 1:
        raise UserError(f"states are stored one way: {' or '.join(named)}")
    found = captured(run, out, numbers, next(iter(named), None), data_dir, batch, progress=True)
    manifest = found.manifest
    facts = {
        "directory": str(out),
        "texts": len(found.texts),
        "rows": sum(shard.rows for shard in manifest.shards),
        "bytes": manifest.bytes,
        "layers": list(manifest.layers),
        "dtype": manifest.dtype,
        "seconds": manifest.seconds,
        "storage": None if manifest.storage is None else manifest.storage.model_dump(),
        "not_likeliest": manifest.not_likeliest,
        "head_check": manifest.head_check,
    }
    if as_json:
        options.print_json("capture", facts)
        return
    print(
        f"{facts['texts']:,} texts, {facts['rows']:,} tokens, {manifest.bytes:,} bytes in {out}, read in "
        f"{manifest.seconds:.2g} s"
    )
    if manifest.storage is not None:
        lost = manifest.storage
        print(f"stored as {manifest.dtype}: log p of a token moves by {lost.mean:.2g} nats, {lost.largest:.2g} at most")
    if manifest.not_likeliest:
        print(f"{manifest.not_likeliest} tokens are near ties: this pass finds another one likelier")


def replay(
    directory: Annotated[Path, typer.Argument(help="Folder of `speceval capture`.")],
    draft: Annotated[str, typer.Option(help="Drafters, comma-separated: names, directories, ngram.")],
    k: Annotated[int | None, typer.Option(help="Draft tokens of a step [default: the drafter's own].")] = None,
    drafting: Annotated[
        str | None,
        typer.Option(
            help="Drafts are drawn from q, or are its likeliest tokens.",
            **options.choices(lambda: ("probabilistic", "greedy")),
        ),
    ] = None,
    draft_truncation: Annotated[bool, typer.Option(help="Truncate q by top-k and top-p as p is.")] = True,
    method: Annotated[str | None, typer.Option(help="Drafting method of a checkpoint that does not tell.")] = None,
    draft_arg: Annotated[
        list[str] | None, typer.Option(help="n-gram: prompt_lookup_min or _max, key=value; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where drafters compute: cpu, cuda.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory to write; of several drafters the folder above.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure drafters on a capture, without the target: each becomes a replayed run, exact on these texts.

    One that cannot be measured does not stand in the way of the others; it is named at the end, with exit code 4.
    """
    from speceval.api.capturing import replayed
    from speceval.show import tables
    from speceval.show.labels import directory_names

    names, arguments = options.split(draft, "--draft"), options.pairs(draft_arg, "--draft-arg")
    places = [
        out if out is None or len(names) == 1 else out / folder
        for folder in directory_names([Path(name) for name in names])
    ]
    if twice := [place for place in places if place is not None and places.count(place) > 1]:
        raise UserError(f"--draft {draft}: two of them would be written to {twice[0]}: replay one after the other")
    runs, errors = [], []
    for name, place in zip(names, places, strict=True):
        try:
            found = replayed(
                directory,
                name,
                k=k,
                drafting=drafting,
                draft_truncation=draft_truncation,
                method=method,
                draft_args=arguments,
                device=device,
                out=place,
                progress=True,
            )
            runs.append(found)
        except UserError as error:
            errors.append(str(error))
    if errors and not runs:
        raise UserError("; ".join(dict.fromkeys(errors)))
    contents = [tables.run_json(run) for run in runs]
    if as_json:
        options.print_json("replay", {"runs": contents})
    else:
        for run, content in zip(runs, contents, strict=True):
            options.output().print(tables.run_tables(run, content))
            print(f"written: {terminal.line(str(run.directory))}", file=sys.stderr)
    if errors:
        raise UserError("; ".join(dict.fromkeys(errors)))
    if any(content["problems"] for content in contents):
        raise typer.Exit(1)
