"""The shape of lm-evaluation-harness's results file (version 0.4): a suite is a task, tau its metric."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from speceval.estimate.acceptance import undrafted_note
from speceval.private import public
from speceval.show.export.names import checkpoint
from speceval.show.tables import lengths, suite_summary
from speceval.store import StoredRun

NOT_THERE = "N/A"
"""What lm-evaluation-harness writes for an error that it does not know."""


def lm_eval_json(run: StoredRun) -> str:
    """A run as lm-evaluation-harness would have written it, as JSON text: ASCII, without NaN."""
    return json.dumps(lm_eval_results(run), indent=2, allow_nan=False) + "\n"


def lm_eval_results(run: StoredRun) -> dict[str, Any]:
    """The object behind `lm_eval_json`. Metrics are named "metric,filter", the filter being "none"."""
    run = run.published()
    meta, spec, fingerprint = run.meta, run.meta.spec, run.meta.fingerprint
    packages = meta.environment.packages
    name = public(spec.draft) or spec.draft
    summaries = {suite: suite_summary(run, suite) for suite in run.suites}
    seconds = meta.engine_seconds if meta.wall_seconds is None else meta.wall_seconds
    return {
        "results": {suite: {"alias": suite, **_metrics(summary)} for suite, summary in summaries.items()},
        "group_subtasks": {suite: [] for suite in summaries},
        "configs": {suite: _config(run, suite, summary) for suite, summary in summaries.items()},
        "versions": {suite: fingerprint.suites[suite].version for suite in summaries},
        "n-shot": dict.fromkeys(summaries, 0),
        "higher_is_better": {suite: dict.fromkeys(lengths(summary), True) for suite, summary in summaries.items()},
        "n-samples": {
            suite: {"original": fingerprint.suites[suite].conversations, "effective": summary["conversations"]}
            for suite, summary in summaries.items()
        },
        "config": {
            "model": "vllm",
            "model_args": {
                "target": checkpoint(fingerprint.target),
                "draft": checkpoint(fingerprint.draft),
                "method": fingerprint.engine.method,
                "num_speculative_tokens": spec.k,
                "draft_sample_method": spec.drafting,
            },
            "batch_size": spec.batch,
            "device": fingerprint.engine.device,
            "limit": spec.limit,
            "random_seed": spec.seeds[0],
            "gen_kwargs": fingerprint.sampling.model_dump(),
            "fingerprint": meta.fingerprint_hash,
        },
        "git_hash": None,
        "date": datetime.fromisoformat(meta.created).timestamp(),
        "pretty_env_info": "\n".join(f"{key}: {value}" for key, value in meta.environment.model_dump().items()),
        "transformers_version": packages.get("transformers"),
        "lm_eval_version": None,
        "speceval_version": packages.get("speceval"),
        "model_source": "speceval",
        "model_name": name,
        "model_name_sanitized": "".join(c if c.isalnum() or c in "._-" else "_" for c in name),
        "chat_template_sha": fingerprint.chat_template,
        "total_evaluation_time_seconds": str(seconds),
    }


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    """Every acceptance length that was measured, then the rates per position; each with its clustered error."""
    found: dict[str, Any] = {}
    for name in lengths(summary):
        if summary[name]["value"] is not None:
            error = summary[name]["se"]
            found |= {
                f"{name},none": summary[name]["value"],
                f"{name}_stderr,none": NOT_THERE if error is None else error,
            }
    for row in summary["positions"]:
        if row["unconditional"] is not None:
            name = f"accepted_{row['position']}"
            found |= {f"{name},none": row["unconditional"], f"{name}_stderr,none": NOT_THERE}
    return found


def _config(run: StoredRun, suite: str, summary: dict[str, Any]) -> dict[str, Any]:
    fingerprint, facts = run.meta.fingerprint, run.meta.fingerprint.suites[suite]
    note = undrafted_note(run.suite(suite)[0])
    return {
        "task": suite,
        "dataset_hash": facts.dataset,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "generation_kwargs": {"max_gen_toks": facts.max_tokens, **fingerprint.sampling.model_dump()},
        "repeats": len(fingerprint.seeds),
        "metric_list": [
            {"metric": name, "aggregation": "ratio of sums", "higher_is_better": True} for name in lengths(summary)
        ],
        "metadata": {"version": facts.version, **({} if note is None else {"note": note})},
    }
