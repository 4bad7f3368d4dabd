"""The command line. Imports nothing heavy at start: `speceval --help` answers at once."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speceval.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_BAD_INPUT = 4
EXIT_INTERRUPTED = 130

UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""Every complaint of the option parser; typer names no public class for it."""

app = typer.Typer(
    help="Measure how many draft tokens a target model accepts in vLLM's speculative decoding.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class DraftingChoice(StrEnum):
    """Ways to draw draft tokens that a user can ask for."""

    probabilistic = "probabilistic"
    greedy = "greedy"


class RejectionChoice(StrEnum):
    """vLLM's ways to verify drafts."""

    standard = "standard"
    block = "block"
    synthetic = "synthetic"
    fly = "fly"


class ReferenceChoice(StrEnum):
    """What `speceval verify` compares an engine's continuations with."""

    auto = "auto"
    exact = "exact"
    two_sample = "two-sample"


class Listing(StrEnum):
    """What `speceval ls` can list."""

    targets = "targets"
    drafters = "drafters"
    suites = "suites"
    patches = "patches"
    runs = "runs"


@app.command()
def run(
    target: Annotated[str, typer.Option(help="Catalog name, hub id or directory of the target.")],
    draft: Annotated[str, typer.Option(help="Catalog name, hub id or directory of the drafter; ngram, suffix.")],
    temp: Annotated[float, typer.Option(help="Temperature of the target, and of sampled drafts.")],
    suite: Annotated[str, typer.Option(help="Suites, comma-separated: names or files (.yaml, .jsonl).")] = "",
    k: Annotated[int | None, typer.Option(help="Draft tokens of a step [default: the drafter's own].")] = None,
    limit: Annotated[int | None, typer.Option(help="Conversations of each suite.")] = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Shuffle each suite before --limit.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer [default: the suite's own].")] = None,
    seeds: Annotated[str, typer.Option(help="Samples of each conversation: 0,1,2 or 0-7.")] = "0",
    top_p: Annotated[float, typer.Option(help="Nucleus of the target; 1 is off.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Top-k of the target; 0 is off.")] = 0,
    drafting: Annotated[
        DraftingChoice | None,
        typer.Option(help="[default: probabilistic at temperatures above 0, else greedy]"),
    ] = None,
    draft_truncation: Annotated[bool, typer.Option(help="Truncate q by top-k and top-p as p is.")] = True,
    rejection: Annotated[
        RejectionChoice, typer.Option(help="Verify by standard or block; synthetic and fly are not lossless: refused.")
    ] = RejectionChoice.standard,
    batch: Annotated[int, typer.Option(help="Requests that the engine runs at once.")] = 32,
    prefix_caching: Annotated[bool, typer.Option(help="Let the engine reuse prefixes.")] = False,
    template_arg: Annotated[
        list[str] | None, typer.Option(help="Argument of the chat template, key=value; may be repeated.")
    ] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="Argument of vllm.LLM, key=value; may be repeated.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with a checkpoint.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the suites' data files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run [default: results/<name>].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a drafter: generate every suite with speculative decoding and print the acceptance lengths.

    The same command resumes an interrupted run, and prints a finished one again.
    """
    from speceval import launch

    job = launch.prepare(
        target=target,
        draft=draft,
        temperature=temp,
        suite_names=_split(suite),
        k=k,
        drafting=drafting.value if drafting else None,
        data_dir=data_dir,
        out=out,
        limit=limit,
        shuffle_seed=shuffle_seed,
        max_tokens=max_tokens,
        seeds=_seeds(seeds),
        top_p=top_p,
        top_k=top_k,
        draft_truncation=draft_truncation,
        rejection=rejection.value,
        batch=batch,
        prefix_caching=prefix_caching,
        chat_template_kwargs=_pairs(template_arg, "--template-arg"),
        engine_args=_pairs(engine_arg, "--engine-arg"),
        trust_remote_code=trust_remote_code,
    )
    finished = measure(job)
    _print_run(finished, as_json)
    if finished.meta["problems"]:
        raise typer.Exit(1)


@app.command()
def verify(
    ctx: typer.Context,
    target: Annotated[str, typer.Option(help="Catalog name, hub id or directory of the target.")] = "",
    draft: Annotated[str, typer.Option(help="Catalog name, hub id or directory of the drafter; ngram, suffix.")] = "",
    temp: Annotated[float, typer.Option(help="Temperature of the target, and of sampled drafts.")] = 1.0,
    k: Annotated[int | None, typer.Option(help="Draft tokens of a step [default: the drafter's own].")] = None,
    top_k: Annotated[int, typer.Option(help="Top-k of the target; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the target; 1 is off.")] = 1.0,
    drafting: Annotated[DraftingChoice | None, typer.Option(help="[default: probabilistic]")] = None,
    draft_truncation: Annotated[bool, typer.Option(help="Truncate q by top-k and top-p as p is.")] = True,
    rejection: Annotated[
        RejectionChoice, typer.Option(help="Verify by standard or block; synthetic and fly are not lossless: refused.")
    ] = RejectionChoice.standard,
    samples: Annotated[int, typer.Option(help="Continuations to draw; with --kernels requests.")] = 20000,
    n_tokens: Annotated[int | None, typer.Option(help="Tokens of a continuation [default: K + 4, at least 8].")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt to continue; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(help="Requests that the engine runs at once.")] = 256,
    seeded: Annotated[bool, typer.Option(help="Give every request a seed of its own.")] = False,
    greedy_share: Annotated[float, typer.Option(help="Share of requests sent greedy, among the others.")] = 0.0,
    reference: Annotated[
        ReferenceChoice, typer.Option(help="The target's own probabilities, or a sample without speculation.")
    ] = ReferenceChoice.auto,
    bias: Annotated[float, typer.Option(help="Bias (total variation) that must be seen to call it exact.")] = 0.02,
    prefix_caching: Annotated[bool, typer.Option(help="Let the engine reuse prefixes.")] = False,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="Argument of vllm.LLM, key=value; may be repeated.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with a checkpoint.")] = False,
    out: Annotated[Path | None, typer.Option(help="Directory of the report [default: results/verify/<name>].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    kernels: Annotated[bool, typer.Option(help="Test a version's sampling code alone, without an engine.")] = False,
    vllm: Annotated[
        list[str] | None, typer.Option(help="With --kernels: a vLLM wheel or source directory; may be repeated.")
    ] = None,
) -> None:
    """Verify that speculative decoding samples what the target alone would: exact, biased or not enough samples.

    Exit code 0 if exact, 1 if biased, 2 if there were not enough samples.
    """
    if kernels:
        # Both are optional parts of one command; each imports what it needs.
        from speceval import kernels as kernels_module

        _only(ctx, "--kernels", ("kernels", "vllm", "samples"))
        requests = samples if _given(ctx, "samples") else kernels_module.REQUESTS
        raise typer.Exit(kernels_module.main(vllm or [], n=requests))
    for flag, value in (("--target", target), ("--draft", draft)):
        if not value:
            raise UserError(f"{flag} is needed (or --kernels, which needs neither)")
    if vllm:
        raise UserError("--vllm: goes with --kernels; an engine is the installed vLLM")
    from speceval.verify import EXIT_CODES, run
    from speceval.verify.command import execute

    settings = run.Settings(
        samples=samples,
        tokens=n_tokens,
        prompts=tuple(prompt or run.PROMPTS),
        seeded=seeded,
        greedy_share=greedy_share,
        reference=reference.value,
        bias=bias,
    )
    report = execute(
        settings,
        out,
        _output() if not as_json else None,
        target=target,
        draft=draft,
        temperature=temp,
        k=k,
        top_k=top_k,
        top_p=top_p,
        drafting=drafting.value if drafting else None,
        draft_truncation=draft_truncation,
        rejection=rejection.value,
        batch=batch,
        prefix_caching=prefix_caching,
        engine_args=_pairs(engine_arg, "--engine-arg"),
        trust_remote_code=trust_remote_code,
    )
    raise typer.Exit(EXIT_CODES[report.verdict])


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a stored run again, finished or not."""
    from speceval.store import read_run

    _print_run(read_run(run), as_json)


@app.command()
def demo(
    everything: Annotated[bool, typer.Option("--all", help="Every architecture and loss of the zoo.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the demo's runs [default: results/demo, results/demo-all].")
    ] = None,
) -> None:
    """Train the zoo, measure its two EAGLE-3 drafters at T=0 and 1, and compare them."""
    from speceval import demo as small
    from speceval import demo_all

    demo_module, name = (demo_all, "demo-all") if everything else (small, "demo")
    demo_module.main(out or Path("results") / name, measure, _output())


@app.command(name="ls")
def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")],
    root: Annotated[Path, typer.Option(help="Where runs are looked for.")] = Path("results"),
) -> None:
    """List the catalog, the suites, the vLLM patches or the stored runs."""
    from speceval import listings

    _output().print(getattr(listings, what.value)(root) if what is Listing.runs else getattr(listings, what.value)())


def measure(job: Any) -> Any:
    """Run a prepared job with a progress display on stderr, or read it back when it is complete."""
    from rich.console import Console

    from speceval import display, launch

    known = launch.stored(job)
    if known is not None and known.complete:
        return known
    # Own copies of the terminal: the engine's output goes to a file meanwhile.
    with os.fdopen(os.dup(2), "w") as terminal:
        console = Console(file=terminal)

        def log(path: Path) -> AbstractContextManager[None]:
            console.print(f"starting vLLM; its log: {path}", markup=False, soft_wrap=True)
            return display.output_to(path)

        try:
            return launch.run(job, display.watcher(console), log)
        except KeyboardInterrupt:
            partial = launch.stored(job)
            count = 0 if partial is None else partial.conversations
            console.print(f"interrupted: {count} conversations are in {job.directory}; the same command resumes")
            raise


def main() -> None:
    """Entry point: bad input and broken files become one line and an exit code."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code or 0)
    except UserError as error:
        _exit(EXIT_BAD_INPUT, f"error: {error}")
    except (typer.Abort, KeyboardInterrupt):
        _exit(EXIT_INTERRUPTED)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        _exit(EXIT_BAD_INPUT, f"error: cannot read or write{place}: {error.strerror or error}")
    except UsageError as error:
        _exit(EXIT_BAD_INPUT, f"error: {error.format_message()}")


def _exit(code: int, line: str = "") -> None:
    if line:
        print(line, file=sys.stderr, flush=True)
    # A stdout that cannot be written would raise again at shutdown.
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
    sys.exit(code)


def _output() -> Console:
    from rich.console import Console

    # Piped output is not cut to a terminal's width.
    return Console(width=None if sys.stdout.isatty() else 160)


def _print_run(stored: Any, as_json: bool) -> None:
    from speceval import tables

    if as_json:
        import json

        print(json.dumps(tables.run_json(stored), ensure_ascii=False, allow_nan=False))
    else:
        _output().print(tables.run_tables(stored))


def _given(ctx: typer.Context, parameter: str) -> bool:
    """Whether the user set an option on the command line."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _only(ctx: typer.Context, flag: str, allowed: tuple[str, ...]) -> None:
    """Refuse options that `flag` leaves without a meaning."""
    for parameter in ctx.params:
        if parameter not in allowed and _given(ctx, parameter):
            name = "json" if parameter == "as_json" else parameter.replace("_", "-")
            raise UserError(f"--{name}: has no meaning with {flag}: leave it out")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _seeds(text: str) -> tuple[int, ...]:
    """ "0,1,5-7" as (0, 1, 5, 6, 7)."""
    seeds: list[int] = []
    try:
        for part in _split(text):
            low, _, high = part.partition("-")
            seeds.extend(range(int(low), int(high or low) + 1))
    except ValueError:
        raise UserError(f"--seeds {text}: not a list of whole numbers such as 0,1,2 or 0-7") from None
    return tuple(seeds)


def _pairs(items: list[str] | None, flag: str) -> dict[str, Any]:
    """ "key=value" items; the value is read as YAML (numbers, true, {a: 1}), anything else is a string."""
    import yaml

    pairs: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UserError(f"{flag} {item}: not of the form key=value")
        try:
            pairs[key.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            pairs[key.replace("-", "_")] = value
    return pairs


if __name__ == "__main__":
    main()
