"""`speceval explain`: what other tools would have printed for the same generation."""

from __future__ import annotations

from speceval.commands import options


def explain(
    run: options.RunDirectory,
    as_json: options.AsJson = False,
) -> None:
    """Print what other tools and the paper would have called this run's tau, and why each number differs."""
    from speceval.api.results import Explanation
    from speceval.estimate import books
    from speceval.estimate.explain import explain_run

    options.show(Explanation(explain_run(books.read(run))), as_json)
