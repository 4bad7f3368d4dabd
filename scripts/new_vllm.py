"""What a version of vLLM changes for the patches: `python scripts/new_vllm.py SOURCE`.

SOURCE is a wheel, a source tree, an unpacked site-packages, or `installed`. Nothing of it is imported. For each row of
the ledger, each guarded hook and each defect without a patch: whether the place is still there (or where its name is
now), its signature, the hash of its source, and what differs from the installed version. Ends with a table and the
lines for the ledger. Exit code 1 if any row of the ledger needs a look, else 0.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from speceval.errors import UserError
from speceval.exactness.kernels import sources
from speceval.exactness.kernels.sources import Source
from vllm_patches import guard, source_text, unpatched
from vllm_patches.ledger import LEDGER, Patch
from vllm_patches.state import digest, takes
from vllm_patches.versions import RELEASES, within

KNOWN, NATIVE, ENDED = "known", "native", "ended"
CHANGED, SIGNATURE, MOVED, GONE = "changed", "signature", "moved", "gone"
SAME, UNCOMPARED = "same", "not compared"
SETTLED = (KNOWN, NATIVE, ENDED)
"""States of a ledger row that need nothing."""

MOST_PLACES = 8


@dataclass(frozen=True)
class Finding:
    """One row, hook or defect in the new version."""

    kind: str
    """"ledger", "hook" or "defect"."""
    id: str
    target: str
    state: str
    hash: str = ""
    """Of the source text; "" where there is none."""
    notes: tuple[str, ...] = ()
    diff: str = ""
    """Unified, against the other version's text."""


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; 1 if a ledger row is not settled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--version", help="of SOURCE, where it states none (a git checkout)")
    parser.add_argument("--against", default=sources.INSTALLED, help="version that differences are shown to")
    options = parser.parse_args(arguments)
    try:
        new = sources.find(options.source, "SOURCE", options.version)
    except UserError as error:
        print(error, file=sys.stderr)
        return 4
    try:
        old = sources.find(options.against, "--against")
    except UserError as error:
        print(f"no differences are shown: {error}", file=sys.stderr)
        old = None
    findings = examine(new, old)
    print(report(findings, new, old))
    return int(any(finding.kind == "ledger" and finding.state not in SETTLED for finding in findings))


def examine(new: Source, old: Source | None) -> list[Finding]:
    """Every ledger row, hook and defect without a patch in `new`; differences are those to `old`."""
    return [
        *(_row(patch, new, old) for patch in LEDGER),
        *(_hook(f"{module}.{owner}.{name}", new, old) for module, (owner, name, _) in guard.HOOKS.items()),
        *(_defect(row, new, old) for row in unpatched.ROWS),
    ]


def _row(patch: Patch, new: Source, old: Source | None) -> Finding:
    text = symbol(new, patch.module, patch.symbol)
    if patch.native and within(patch.native, new.version):
        return Finding("ledger", patch.id, patch.target, NATIVE, notes=(f"vLLM does it right: {patch.native}",))
    if not within(patch.versions, RELEASES[-1]) and not within(patch.versions, new.version):
        return Finding("ledger", patch.id, patch.target, ENDED, notes=(f"the row is for {patch.versions} alone",))
    if text is None:
        return _lost("ledger", patch.id, patch.module, patch.symbol, new)
    parameters = source_text.parameters(_module(new, patch.module) or "", patch.symbol)
    state, notes = CHANGED, [] if old else ["no other version to compare with"]
    if digest(text) in patch.sources.values():
        same = [version for version, source in patch.sources.items() if source == digest(text)]
        state, notes = KNOWN, [f"as in {', '.join(same)}"]
    elif not takes(patch, parameters):
        state = SIGNATURE
        notes.append(f"takes ({', '.join(parameters)})")
        notes.append(f"  row:  ({', '.join(patch.parameters)})")
    before = symbol(old, patch.module, patch.symbol) if old else None
    return Finding(
        "ledger", patch.id, patch.target, state, digest(text), tuple(notes), _diff(before, text, patch.target)
    )


def _hook(target: str, new: Source, old: Source | None) -> Finding:
    module, name = split(target, new, old)
    text, before = symbol(new, module, name), symbol(old, module, name) if old else None
    if text is None:
        return _lost("hook", name, module, name, new)
    state = UNCOMPARED if before is None else SAME if text == before else CHANGED
    return Finding("hook", name, target, state, digest(text), diff=_diff(before, text, target))


def _defect(row: unpatched.Unpatched, new: Source, old: Source | None) -> Finding:
    """A defect's place may be a definition, a module or a package; of the latter two the changed files are named."""
    holds = within(row.versions, new.version)
    notes = [f"{row.state}; the row's versions {'include' if holds else 'leave out'} {new.version}"]
    module, name = split(row.target, new, old)
    if name:
        text, before = symbol(new, module, name), symbol(old, module, name) if old else None
        if text is None:
            return _lost("defect", row.id, module, name, new, notes)
        state = UNCOMPARED if before is None else SAME if text == before else CHANGED
        return Finding("defect", row.id, row.target, state, digest(text), tuple(notes), _diff(before, text, row.target))
    if not _files(new, module):
        return _lost("defect", row.id, module, "", new, notes)
    if old is None:
        return Finding("defect", row.id, row.target, UNCOMPARED, notes=tuple(notes))
    paths = sorted({*_files(new, module), *_files(old, module)})
    changed = [path for path in paths if new.read(path) != old.read(path)]
    notes += [f"changed: {path}" for path in changed]
    return Finding("defect", row.id, row.target, CHANGED if changed else SAME, notes=tuple(notes))


def _lost(kind: str, id_: str, module: str, name: str, new: Source, notes: list[str] | None = None) -> Finding:
    """A place that is no longer there, and where its name stands now."""
    lost = f"{module} has no {name}" if _module(new, module) is not None else f"there is no module {module}"
    places = list(elsewhere(new, name)) if name else []
    candidates = [f"perhaps {place}" for place in places[:MOST_PLACES]]
    if len(places) > MOST_PLACES:
        candidates.append(f"and {len(places) - MOST_PLACES} more")
    target = f"{module}.{name}" if name else module
    return Finding(kind, id_, target, MOVED if candidates else GONE, notes=(*(notes or ()), lost, *candidates))


def split(target: str, *versions: Source | None) -> tuple[str, str]:
    """A dotted name as its module or package, in the first version that has it, and the name in there ("": none)."""
    parts = target.split(".")
    for version in versions:
        for count in range(len(parts), 1, -1):
            module = ".".join(parts[:count])
            if version is not None and _files(version, module):
                return module, ".".join(parts[count:])
    return target, ""


def elsewhere(source: Source, name: str) -> Iterator[str]:
    """Dotted names in any module that end like `name`; a method's class first, if that still has its name."""
    owner = name.rpartition(".")[0]
    places = []
    for path in source.files():
        try:
            names = source_text.places(source.read(path) or "", name)
        except SyntaxError:
            continue
        places += [(place != name, owner not in place, f"{dotted(path)}.{place}") for place in names]
    return (place for *_, place in sorted(places))


def symbol(source: Source, module: str, name: str) -> str | None:
    """Source text of a definition in a module."""
    text = _module(source, module)
    return None if text is None else source_text.text_of(text, name)


def dotted(path: str) -> str:
    """A file's path in `vllm` as the module's name."""
    return ".".join(["vllm", *path.removesuffix(".py").removesuffix("__init__").rstrip("/").split("/")]).rstrip(".")


def _module(source: Source, module: str) -> str | None:
    path = "/".join(module.split(".")[1:])
    text = source.read(f"{path}.py")
    return source.read(f"{path}/__init__.py") if text is None else text


def _files(source: Source, module: str) -> list[str]:
    """Python files of a module or package."""
    path = "/".join(module.split(".")[1:])
    return [name for name in source.files() if name == f"{path}.py" or name.startswith(f"{path}/")]


def _diff(before: str | None, after: str, name: str) -> str:
    if before is None or before == after:
        return ""
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"old/{name}", f"new/{name}"))


def report(findings: list[Finding], new: Source, old: Source | None) -> str:
    """The findings one by one, the table, and the lines to paste."""
    against = f", differences to {old.version}" if old else ""
    lines = [f"vLLM {new.version} ({new.name}){against}", ""]
    for finding in findings:
        lines.append(f"== {finding.kind} {finding.id}: {finding.state}  {finding.hash}".rstrip())
        lines.append(f"   {finding.target}")
        lines += [f"   {note}" for note in finding.notes]
        if finding.diff and finding.state != KNOWN:
            lines.append(finding.diff.rstrip("\n"))
        lines.append("")
    return "\n".join([*lines, *_table(findings), "", *_paste(findings, new)])


def _table(findings: list[Finding]) -> list[str]:
    rows = [("kind", "id", "state", "hash"), *((f.kind, f.id, f.state, f.hash or "–") for f in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _paste(findings: list[Finding], new: Source) -> list[str]:
    """Lines for the ledger of rows whose symbol is there; a hash says that its text was read."""
    rows = [finding for finding in findings if finding.kind == "ledger" and finding.hash]
    unread = [finding.id for finding in rows if finding.state not in SETTLED]
    lines = [f'vllm_patches/versions.py, RELEASES: "{new.version}"'] if new.version not in RELEASES else []
    lines += [f'{finding.id}: "{new.version}": "{finding.hash}",' for finding in rows]
    return [*lines, *([f"read before pasting: {', '.join(unread)}"] if unread else [])]


if __name__ == "__main__":
    sys.exit(main())
