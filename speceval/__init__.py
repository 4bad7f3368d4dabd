"""speceval: measure speculative-decoding acceptance on vLLM.

    import speceval

    run = speceval.run("zoo", "lk-eagle3", temperature=1)
    print(run.tau())

Every name is loaded when it is first used: `import speceval` itself costs nothing (docs/start/python.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from speceval.api.capturing import Evaluation, capture, evaluate, read_capture, replay
    from speceval.api.measuring import merge, run, train_zoo, verify
    from speceval.api.probing import probe
    from speceval.api.reading import (
        check,
        check_counts,
        compare,
        explain,
        holm,
        ratio,
        ratio_difference,
        read_run,
        validate,
    )
    from speceval.api.results import Comparison, Difference, Estimate, Run
    from speceval.api.serving import Serving, serve
    from speceval.api.showing import export, plot, report, table
    from speceval.api.sweeps import Sweep, sweep
    from speceval.api.tuning import Tuning, tune
    from speceval.api.watching import Watched, watch
    from speceval.errors import NotComparable, UserError
    from speceval.protocol import RunSpec
    from speceval.show.plots import style

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "Evaluation",
    "NotComparable",
    "Run",
    "RunSpec",
    "Serving",
    "Sweep",
    "Tuning",
    "UserError",
    "Watched",
    "capture",
    "check",
    "check_counts",
    "compare",
    "evaluate",
    "explain",
    "export",
    "holm",
    "merge",
    "plot",
    "probe",
    "ratio",
    "ratio_difference",
    "read_capture",
    "read_run",
    "replay",
    "report",
    "run",
    "serve",
    "style",
    "sweep",
    "table",
    "train_zoo",
    "tune",
    "validate",
    "verify",
    "watch",
]

_HOMES = {
    "speceval.api.capturing": ("Evaluation", "capture", "evaluate", "read_capture", "replay"),
    "speceval.api.measuring": ("merge", "run", "train_zoo", "verify"),
    "speceval.api.probing": ("probe",),
    "speceval.api.reading": (
        *("check", "check_counts", "compare", "explain", "holm", "ratio", "ratio_difference", "read_run", "validate"),
    ),
    "speceval.api.results": ("Comparison", "Difference", "Estimate", "Run"),
    "speceval.api.serving": ("Serving", "serve"),
    "speceval.api.showing": ("export", "plot", "report", "table"),
    "speceval.api.sweeps": ("Sweep", "sweep"),
    "speceval.api.tuning": ("Tuning", "tune"),
    "speceval.api.watching": ("Watched", "watch"),
    "speceval.errors": ("NotComparable", "UserError"),
    "speceval.protocol": ("RunSpec",),
    "speceval.show.plots": ("style",),
}
"""Module -> the public names that it holds."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
