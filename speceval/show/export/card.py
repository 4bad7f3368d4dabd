"""A drafter's hub page: Markdown under YAML with the hub's `model-index`."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from speceval.private import public, without_places
from speceval.protocol import flatten
from speceval.show import layouts, render
from speceval.show.export.names import checkpoint, hub_dataset
from speceval.show.layouts.form import Cell, Column, Row, Table
from speceval.show.tables import lengths, suite_summary
from speceval.store import StoredRun
from speceval.terminal import clean

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

DIGITS = 4
LONGEST_COMMAND = 4000
"""Characters of the command line that are shown."""


def model_card(run: StoredRun) -> str:
    """The page as text. The front matter is read back as the hub reads it; ValueError if that changes a result."""
    data = card_data(run)
    tables = [
        render.markdown(_published(layouts.build(layout, [run.directory]))) for layout in ("summary", "positions")
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(run.published(), *tables)}"
    _check(text, data)
    return text


def card_data(run: StoredRun) -> ModelCardData:
    """The front matter: what the drafter belongs to, and a result for every suite and definition of tau."""
    from huggingface_hub import ModelCardData

    fingerprint, name = run.meta.fingerprint, _name(run)
    datasets = [hub.id for suite in run.suites if (hub := hub_dataset(suite))]
    target = fingerprint.target.model
    return ModelCardData(
        model_name=name,
        base_model=target if target not in ("zoo", "local", "package") else None,
        library_name="vllm",
        tags=["speculative-decoding", "draft-model", fingerprint.engine.method],
        datasets=list(dict.fromkeys(datasets)) or None,
        eval_results=[result for suite in run.suites for result in _results(run, suite)],
    )


def _results(run: StoredRun, suite: str) -> list[EvalResult]:
    """One result for each acceptance length of a suite that was measured, its interval and conditions beside it."""
    from huggingface_hub import EvalResult

    summary, spec, hub = suite_summary(run, suite), run.meta.spec, hub_dataset(suite)
    conditions = {
        "num_speculative_tokens": spec.k,
        "temperature": spec.temperature,
        "drafting": spec.drafting,
        "conversations": summary["conversations"],
        "steps": summary["steps"],
    }
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Speculative decoding",
            dataset_type=hub.id if hub else clean(suite),
            dataset_name=clean(suite),
            dataset_config=hub.config if hub else None,
            dataset_split=hub.split if hub else None,
            metric_type="acceptance_length",
            metric_name=label,
            metric_value=round(summary[name]["value"], DIGITS),
            metric_args={"definition": name, "interval_95": _interval(summary[name]), **conditions},
        )
        for name, label in lengths(summary).items()
        if summary[name]["value"] is not None
    ]


def _interval(found: dict[str, float | None]) -> list[float] | str:
    low, high = found["low"], found["high"]
    return "unknown" if low is None or high is None else [round(low, DIGITS), round(high, DIGITS)]


def _body(run: StoredRun, summary: str, positions: str) -> str:
    meta, spec, fingerprint = run.meta, run.meta.spec, run.meta.fingerprint
    asked = {"k": spec.k, "drafting": spec.drafting}
    sampling = {**asked, **fingerprint.sampling.model_dump(), "seeds": fingerprint.seeds}
    checkpoints = flatten({name: checkpoint(getattr(fingerprint, name)) for name in ("target", "draft")})
    suites = flatten({"suite": {name: suite.model_dump() for name, suite in fingerprint.suites.items()}})
    versions = {"vllm": fingerprint.engine.vllm, **meta.environment.packages}
    parts = [
        "# Acceptance in speculative decoding\n",
        "How many draft tokens of this drafter the target accepts, measured with speceval on vLLM. tau is 1 + accepted "
        "draft tokens per verify step, pooled over all steps; the books of the run balance.\n",
        "## Acceptance length\n",
        summary,
        "## Draft positions\n",
        positions,
        "## Protocol\n",
        _facts({**checkpoints, **suites, **sampling, "fingerprint": meta.fingerprint_hash}, "What was measured."),
        "## Reproduce\n",
        _fenced(shlex.join(meta.command)),
        "## Versions\n",
        _facts(versions, "What it ran on.", f"Patches to vLLM: {', '.join(fingerprint.patches) or 'none'}."),
    ]
    return "\n".join(parts)


def _published(table: Table) -> Table:
    """A table that names no place on this machine."""

    def told(cell: Cell) -> Cell:
        return replace(cell, text=without_places(cell.text), notes=tuple(map(without_places, cell.notes)))

    rows = (Row(tuple(map(told, row.cells)), without_places(row.section)) for row in table.rows)
    return replace(
        table, caption=without_places(table.caption), rows=tuple(rows), notes=tuple(map(without_places, table.notes))
    )


def _facts(facts: dict[str, Any], caption: str, *notes: str) -> str:
    """Names and values as a Markdown table; `render` escapes them."""
    rows = [Row((Cell(name), Cell(_value(value)))) for name, value in facts.items() if value is not None]
    columns = (Column(("field",), "left"), Column(("value",), "left"))
    return render.markdown(Table(layout="facts", caption=caption, columns=columns, rows=tuple(rows), notes=notes))


def _value(value: Any) -> str:
    from speceval.estimate.comparison import shorten

    return str(value) if isinstance(value, str) else shorten(value)


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    text = clean(text, LONGEST_COMMAND)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}\n"


def _name(run: StoredRun) -> str:
    return clean(public(run.meta.spec.draft) or "drafter")


def _check(text: str, data: ModelCardData) -> None:
    """Read the page back as the hub does."""
    from huggingface_hub import ModelCard, ModelCardData

    found = ModelCard(text, ignore_metadata_errors=False).data
    assert isinstance(found, ModelCardData)
    if found.eval_results != data.eval_results or found.model_name != data.model_name:
        raise ValueError("the model card's results change when the hub reads them back")
