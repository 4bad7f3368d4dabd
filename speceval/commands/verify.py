"""`speceval verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from speceval.commands import options, server_flags
from speceval.errors import UserError

if TYPE_CHECKING:
    from speceval.exactness.run import Mode

FIELDS = (
    *("target", "draft", "k", "temperature", "top_p", "top_k", "drafting", "draft_truncation", "rejection"),
    *("batch", "prefix_caching", "runner", "method", "draft_args", "engine_args", "trust_remote_code"),
)
"""Of `RunSpec`: a verification plays no suite."""


def _references() -> tuple[str, ...]:
    from speceval.exactness.run import Mode

    return get_args(Mode)


@options.of_spec(*FIELDS, target="", draft="", temperature=1.0, batch=256)
def verify(
    ctx: typer.Context,
    request: dict[str, Any],
    samples: Annotated[
        int | None,
        typer.Option(
            help="Continuations to draw, with --kernels requests [default: 20,000, of two samples 60,000 each]."
        ),
    ] = None,
    n_tokens: Annotated[int | None, typer.Option(help="Tokens of a continuation [default: K + 4, at least 8].")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt to continue; may be repeated.")] = None,
    seeded: Annotated[bool, typer.Option(help="Give every request a seed of its own.")] = False,
    greedy_share: Annotated[float, typer.Option(help="Share of requests sent greedy, among the others.")] = 0.0,
    reference: Annotated[
        str,
        typer.Option(
            help="The target's own probabilities, or a sample without speculation.", **options.choices(_references)
        ),
    ] = "auto",
    bias: Annotated[float, typer.Option(help="Bias (total variation) that must be seen to call it exact.")] = 0.02,
    url: Annotated[
        str | None, typer.Option(help="Verify the server that runs here; the target's own law is computed here.")
    ] = None,
    api_key_env: server_flags.ApiKeyEnv = None,
    dialect: server_flags.Dialect = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the report [default: results/verify/<name>].")
    ] = None,
    as_json: options.AsJson = False,
    kernels: Annotated[bool, typer.Option(help="Test a version's sampling code alone, without an engine.")] = False,
    vllm: Annotated[
        list[str] | None,
        typer.Option(help="With --kernels: a vLLM wheel or source directory, whose code is run; may be repeated."),
    ] = None,
) -> None:
    """Verify that speculative decoding samples what the target alone would: exact, biased or not enough samples.

    Exit code 0 if exact, 1 if biased, 2 if there were not enough samples.
    """
    if kernels:
        # Both are optional parts of one command; each imports what it needs.
        from speceval.exactness import kernels as kernels_module

        options.only(ctx, "--kernels", ("kernels", "vllm", "samples"))
        requests = kernels_module.REQUESTS if samples is None else samples
        raise typer.Exit(kernels_module.main(vllm or [], n=requests))
    for name in ("target", "draft"):
        if not request[name]:
            raise UserError(f"--{name} is needed (or --kernels, which needs neither)")
    if vllm:
        raise UserError("--vllm: goes with --kernels; an engine is the installed vLLM")
    if url is not None and "," in url:
        raise UserError(f"--url {url}: the law of one server is tested: name one address")
    request |= server_flags.engine(ctx, url, {"api_key_env": api_key_env, "dialect": dialect}, request)
    from speceval.exactness import EXIT_CODES, run
    from speceval.exactness.command import execute

    settings = run.Settings(
        samples=samples,
        tokens=n_tokens,
        prompts=tuple(prompt or run.PROMPTS),
        seeded=seeded,
        greedy_share=greedy_share,
        reference=cast("Mode", reference),
        bias=bias,
    )
    report = execute(settings, out, progress=True, **request)
    if as_json:
        options.print_json("verify", report.as_json())
    else:
        options.output().print(report, highlight=False)
    raise typer.Exit(EXIT_CODES[report.verdict])
