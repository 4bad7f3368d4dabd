"""`speceval selftest`: does the harness give back acceptance rates that are known in advance?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from speceval import terminal
from speceval.commands import options
from speceval.errors import UserError


@options.of_spec("target", "draft", "k", "runner", "engine_args", "trust_remote_code", target="zoo", draft="lk-eagle3")
def selftest(
    request: dict[str, Any],
    temp: Annotated[float | None, typer.Option(help="One temperature [default: 0 and 1].")] = None,
    rates: Annotated[
        str, typer.Option(help="Share of steps that accept position 1, 2, … [default: evenly spread over (0, 1)].")
    ] = "",
    tau: Annotated[float | None, typer.Option(help="Acceptance length to force, in place of --rates.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to test at each temperature [default: 4000].")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each prompt [default: enough for --steps].")] = None,
    batch: Annotated[int | None, typer.Option(help="Requests that the engine runs at once [default: 256].")] = None,
    runs: Annotated[Path | None, typer.Option(help="Keep the runs in this new directory [default: deleted].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report to this file, as JSON.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the harness on an engine whose acceptance is forced and require the forced rates back.

    Exit code 0 if they come back, 1 if not.
    """
    import json
    from tempfile import TemporaryDirectory

    from speceval.api.measuring import measure
    from speceval.exactness import selftest as known
    from speceval.files import write_whole
    from speceval.measure.fingerprint import environment
    from speceval.store.schema import versioned

    if runs is not None and runs.exists():
        raise UserError(f"--runs {runs}: exists: name a new directory")
    steps = known.STEPS if steps is None else steps
    samples = -(-steps // known.STEPS_PER_SAMPLE) if samples is None else samples
    for flag, value in (("--steps", steps), ("--samples", samples)):
        if value < 1:
            raise UserError(f"{flag} {value}: at least 1")
    k = request.pop("k")
    forced = _forced(request["target"], request["draft"], k, rates, tau)
    with TemporaryDirectory(prefix="speceval-selftest-") as temporary:
        jobs = [
            known.prepare(
                temperature=temperature,
                rates=forced,
                samples=samples,
                directory=runs or Path(temporary),
                batch=known.BATCH if batch is None else batch,
                **request,
            )
            for temperature in (known.TEMPERATURES if temp is None else (temp,))
        ]
        report = known.run(jobs, steps, lambda job: measure(job, progress=True))
    report = versioned("selftest", report | {"environment": environment().model_dump()})
    _print(report, as_json)
    if out is not None:
        write_whole(out, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        terminal.wrote(out)
    if not report["ok"]:
        raise typer.Exit(1)


def _forced(target: str, draft: str, k: int | None, rates: str, tau: float | None) -> tuple[float, ...]:
    """The rates that the options ask for."""
    from speceval.exactness import selftest as known
    from speceval.measure.job import prepare

    if rates and tau is not None:
        raise UserError("--rates and --tau: one of them says everything: leave the other out")
    if rates:
        try:
            forced = known.check_rates([float(rate) for rate in options.split(rates, "--rates")])
        except ValueError:
            raise UserError(f"--rates {rates}: not a list of numbers such as 0.9,0.7,0.5") from None
        if k is not None and k != len(forced):
            raise UserError(f"--k {k}: --rates names {len(forced)} positions: leave --k out")
        return forced
    # The drafter's own K, if none is request for.
    k = prepare(target=target, draft=draft, temperature=0, suite_names=[known.SUITE], k=k).spec.k
    return known.default_rates(k) if tau is None else known.rates_of_tau(tau, k)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        options.print_json("selftest", report)
        return
    console = options.output()
    for condition in report["conditions"]:
        console.print(_table(report, condition))
    console.print(
        f"A sound harness fails with a chance of at most {report['false_alarm']:g} (each p-value must reach "
        f"{report['level']:.2g}); steps are independent by construction.",
        markup=False,
        highlight=False,
    )
    console.print(report["verdict"], style="bold green" if report["ok"] else "bold red", markup=False, highlight=False)


def _table(report: dict[str, Any], condition: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from speceval.fitting import Fitting

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    engine = condition["engine"]
    title = (
        f"{report['target']} · {report['draft']} · T={condition['temperature']:g} · K={report['k']} · "
        f"{condition['tested_steps']:,} of {condition['all_steps']:,} steps · vLLM {engine['vllm']} {engine['runner']} "
        f"on {engine['device']}"
    )
    table = Table(title=Text(title), title_justify="left")
    for name in ("quantity", "forced", "measured", "of", "p", ""):
        table.add_column(name, justify="left" if name in ("quantity", "") else "right")
    for check in condition["checks"]:
        p = "exact" if check["p_value"] is None else f"{check['p_value']:.3g}"
        said = "ok" if check["passed"] else f"NOT GIVEN BACK {check['detail']}"
        cells = (number(check["forced"]), number(check["measured"]), f"{check['trials']:,}", p)
        table.add_row(check["quantity"], *cells, Text(said), style=None if check["passed"] else "red")
    return Fitting(table)
