"""`speceval verify`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options
from speceval.errors import UserError


class ReferenceChoice(StrEnum):
    """What `speceval verify` compares an engine's continuations with."""

    auto = "auto"
    exact = "exact"
    two_sample = "two-sample"


def verify(
    ctx: typer.Context,
    target: options.TargetName = "",
    draft: options.DraftName = "",
    temp: options.Temperature = 1.0,
    k: options.K = None,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    drafting: options.Drafting = None,
    draft_truncation: options.DraftTruncation = True,
    rejection: options.Rejection = options.RejectionChoice.standard,
    samples: Annotated[int, typer.Option(help="Continuations to draw; with --kernels requests.")] = 20000,
    n_tokens: Annotated[int | None, typer.Option(help="Tokens of a continuation [default: K + 4, at least 8].")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt to continue; may be repeated.")] = None,
    batch: options.Batch = 256,
    seeded: Annotated[bool, typer.Option(help="Give every request a seed of its own.")] = False,
    greedy_share: Annotated[float, typer.Option(help="Share of requests sent greedy, among the others.")] = 0.0,
    reference: Annotated[
        ReferenceChoice, typer.Option(help="The target's own probabilities, or a sample without speculation.")
    ] = ReferenceChoice.auto,
    bias: Annotated[float, typer.Option(help="Bias (total variation) that must be seen to call it exact.")] = 0.02,
    prefix_caching: options.PrefixCaching = False,
    method: options.Method = None,
    draft_arg: options.DraftArg = None,
    engine_arg: options.EngineArg = None,
    trust_remote_code: options.TrustRemoteCode = False,
    out: Annotated[Path | None, typer.Option(help="Directory of the report [default: results/verify/<name>].")] = None,
    as_json: options.AsJson = False,
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
        from speceval.exactness import kernels as kernels_module

        options.only(ctx, "--kernels", ("kernels", "vllm", "samples"))
        requests = samples if options.given(ctx, "samples") else kernels_module.REQUESTS
        raise typer.Exit(kernels_module.main(vllm or [], n=requests))
    for flag, value in (("--target", target), ("--draft", draft)):
        if not value:
            raise UserError(f"{flag} is needed (or --kernels, which needs neither)")
    if vllm:
        raise UserError("--vllm: goes with --kernels; an engine is the installed vLLM")
    from speceval.exactness import EXIT_CODES, run
    from speceval.exactness.command import execute

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
        options.output() if not as_json else None,
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
        method=method,
        draft_args=options.pairs(draft_arg, "--draft-arg"),
        engine_args=options.pairs(engine_arg, "--engine-arg"),
        trust_remote_code=trust_remote_code,
    )
    raise typer.Exit(EXIT_CODES[report.verdict])
