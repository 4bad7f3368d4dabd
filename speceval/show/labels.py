"""Names that tell runs apart: in figures, and in the page that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from speceval.store import StoredRun

FORMS = {
    "draft": "{}",
    "target": "{}",
    "temperature": "T={:g}",
    "k": "K={}",
    "drafting": "{} drafts",
    "rejection": "{} verification",
    "top_p": "top-p {:g}",
    "top_k": "top-k {}",
    "max_tokens": "{} tokens",
    "runner": "runner {}",
}
"""Fields of the request that tell runs apart, and how a label says their values."""


def labels(
    runs: Sequence[StoredRun], leave_out: Sequence[str] = (), form: Callable[[str], str] = lambda part: part
) -> list[str]:
    """A short name for each run: its drafter, what else of the request differs, and, of equals, the directory.

    Fields in `leave_out` are not named. `form` is applied to every part, such as a cut of long ones; names that it
    makes equal get the run's number, from 1 on.
    """
    specs = [run.meta.spec for run in runs]
    differ = [
        name
        for name in FORMS
        if name == "draft" or (name not in leave_out and len({getattr(spec, name) for spec in specs}) > 1)
    ]
    parts = [
        [FORMS[name].format(getattr(spec, name)) for name in differ if getattr(spec, name) is not None]
        for spec in specs
    ]
    names = [", ".join(map(form, own)) for own in parts]
    directories = directory_names([run.directory for run in runs])
    told = [
        f"{name} ({form(directory)})" if names.count(name) > 1 else name
        for name, directory in zip(names, directories, strict=True)
    ]
    bearers: dict[str, set[str]] = {}
    for name, directory in zip(told, directories, strict=True):
        bearers.setdefault(name, set()).add(directory)
    return [f"{name} #{number}" if len(bearers[name]) > 1 else name for number, name in enumerate(told, start=1)]


def directory_names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parts before it as it takes to tell different ones apart."""
    parts = [directory.absolute().parts for directory in directories]
    different = len(set(parts))
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == different:
            return names
    return [str(directory) for directory in directories]
