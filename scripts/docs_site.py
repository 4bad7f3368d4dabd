"""What mkdocs.yml adds to the pages in docs/ when the site is built.

README, CONTRIBUTING and CHANGELOG become pages, and three blocks are filled from the code itself, so that no flag, no
field and no function has to be written down twice: the blocks `commands`, `record` and `python`. mkdocs calls the
functions named `on_…`.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import speceval
from speceval.cli import app
from speceval.commands.help import EXAMPLES
from speceval.protocol import RunSpec, flag
from speceval.store.schema import RunMeta

ROOT = Path(__file__).resolve().parent.parent
AT_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "build/contributing.md",
    "CHANGELOG.md": "build/changelog.md",
}
"""Files beside docs/ that are pages of the site, and where."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the root as pages."""
    from mkdocs.structure.files import File

    for source, page in AT_ROOT.items():
        files.append(File.generated(config, page, content=as_page((ROOT / source).read_text(encoding="utf-8"), page)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the blocks."""
    return BLOCK.sub(lambda block: BLOCKS[block[1]](), markdown)


def as_page(text: str, page: str) -> str:
    """A file of the root as the page `page`: links into docs/ follow, what is on no page loses its link."""

    def follow(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if "://" in target:
            return match[0]
        path, _, fragment = target.partition("#")
        there = AT_ROOT.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if there is None:
            return f"{label}"
        link = os.path.relpath(there, Path(page).parent) + (f"#{fragment}" if fragment else "")
        return f"{image}[{label}]({link})"

    return LINK.sub(follow, text)


def commands() -> str:
    """Every command with its arguments, options, their values and defaults, as Markdown."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("speceval", [], resilient_parsing=True)
    names = sorted(group.list_commands(context))
    return "\n\n".join(_command(name, group.get_command(context, name)) for name in names)


def _command(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    command.name_choices()
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [_row(*record) for record in records if record is not None]
    table = "\n".join(["| option | what it does | default |", "|---|---|---|", *rows])
    examples = "\n".join(f"    {line}" for line in EXAMPLES.get(name, ()))
    others = ", ".join(f"`{alias}` = `{parameter.opts[0]}`" for alias, parameter in command.aliases().items())
    below = f"\n\nAlso understood: {others}." if others else ""
    return f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n\n{examples}\n\n{table}{below}"


def _row(option: str, text: str) -> str:
    """A line of a command's table, from what `--help` prints of an option; its default stands in brackets there."""
    flags, _, kind = option.partition(" <")
    kind = re.sub(
        r"^list\[(\w+)\]$", lambda of: of[1].lower(), kind.removesuffix(">")
    )  # the help says: may be repeated
    names = [flag for flag in re.split(r", | / ", flags) if flag]
    takes = "".join(f" {_code(value)}" for value in kind.split("|") if value)
    default, text = "", text.replace("[required]", "**Needed.**")
    if stated := re.search(r"\s*\[default: ([^]]*)\]", text):
        on_or_off = {names[0].lstrip("-"): "on", names[-1].lstrip("-"): "off"} if " / " in flags else {}
        value = on_or_off.get(stated[1], stated[1])
        default = value if " " in value or on_or_off else _code(value)
        text = text.replace(stated[0], "").rstrip(".")
        text += "." * bool(text)
    return f"| {' '.join(_code(name) + '{: .flag }' for name in names)}{takes} | {_cell(text)} | {default} |"


def _code(text: str) -> str:
    return f"`{text}`"  # a bar in code is no border to Python-Markdown


def _cell(text: str) -> str:
    """One line that a cell of a table can hold."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def record() -> str:
    """Every field of run.json with its type and meaning, part by part, as Markdown."""
    told = {field: line for name, _, rows in _classes(RunSpec) if name == RunSpec.__name__ for field, _, line in rows}
    request = [
        (name, _annotation(field.annotation), f"`{flag(name).name}`: {told.get(name, field.description)}")
        for name, field in RunSpec.model_fields.items()
    ]
    parts = {name: (line, rows) for name, line, rows in _classes(RunMeta)}
    first = parts.pop(RunMeta.__name__)
    sections = [("run.json", *first), ("RunSpec", "The request: what the command line asked for.", request)]
    sections += [(name, line, rows) for name, (line, rows) in parts.items()]
    return "\n\n".join(_section(*section) for section in sections)


def _section(title: str, line: str, rows: list[tuple[str, str, str]]) -> str:
    cells = [f"| {_code(name)} | {_cell(meaning)} | {_code(kind)} |" for name, kind, meaning in rows]
    return "\n".join([f"### {title}\n\n{line}\n\n| field | what it is | type |", "|---|---|---|", *cells])


def _classes(model: type) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Name, first line and documented fields of the model's module's classes, in the order of the source."""
    module = inspect.getmodule(model)
    assert module is not None
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            rows = list(_fields(node))
            if rows:
                yield node.name, (ast.get_docstring(node) or "").split("\n\n")[0], rows


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    """Fields that a line of text follows."""
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind), ast.Expr(
                value=ast.Constant(value=str(line))
            ):
                yield name, ast.unparse(kind).replace("'", '"'), line


def _annotation(annotation: Any) -> str:
    """A type as the source would write it."""
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return str(annotation.__name__ if plain else annotation).replace("typing.", "").replace("'", '"')


def python() -> str:
    """Every public name of `import speceval` with its signature and what its docstring says, as Markdown."""
    return "\n\n".join(_member(name, getattr(speceval, name)) for name in speceval.__all__)


def _member(name: str, member: Any) -> str:
    """A function, or a class with its fields and methods."""
    parts = [f"### {name}", _docstring(inspect.getdoc(member) or "")]
    if inspect.isfunction(member):
        parts.insert(1, _signature(name, member))
    elif inspect.isclass(member):
        parts += [f"- {line}" for line in _of_class(member)]
    return "\n\n".join(parts)


def _of_class(member: type) -> Iterator[str]:
    """A line for each documented field, property and method of its own."""
    bases = [base for base in reversed(member.__mro__) if base.__module__.startswith("speceval.")]
    for base in bases:
        (node,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(node, ast.ClassDef)
        yield from (f"`{field}`: {meaning}" for field, _, meaning in _fields(node))
    for name, value in (item for base in bases for item in vars(base).items()):
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            call = name if isinstance(value, property) else _call(name, getattr(member, name)).replace("self, ", "")
            yield f"`{call.replace('(self)', '()')}`: {' '.join((inspect.getdoc(function) or '').split())}"


def _signature(name: str, function: Any) -> str:
    """A call as code, on lines of their own where there are many arguments."""
    text = _call(name, function)
    if len(text) > 120:
        call, _, returns = text.rpartition(") -> ")
        arguments = re.sub(r", (?=\w+:|\*)", ",\n    ", call.removeprefix(f"{name}("))
        text = f"{name}(\n    {arguments},\n) -> {returns}"
    return f"```\n{text}\n```"


def _call(name: str, function: Any) -> str:
    """A signature as the source has it."""
    return re.sub(r"""((?:: |-> ))(["'])(.*?)\2(?=[,)]| =|$)""", r"\1\3", f"{name}{inspect.signature(function)}")


def _docstring(text: str) -> str:
    """A docstring's sections as Markdown: arguments and errors are lists."""

    def section(match: re.Match[str]) -> str:
        entries = re.sub(r"\n {8}", " ", match[2])
        return f"**{match[1]}**\n\n" + re.sub(r"^ {4}(?:([\w, ]+): )?(.*)$", _entry, entries, flags=re.MULTILINE)

    return re.sub(r"^(Args|Returns|Raises):\n((?:    .*(?:\n|\Z))+)", section, text, flags=re.MULTILINE)


def _entry(match: re.Match[str]) -> str:
    return f"- `{match[1]}`: {match[2]}" if match[1] else match[2]


BLOCKS = {"commands": commands, "record": record, "python": python}
BLOCK = re.compile(rf"<!-- ({'|'.join(BLOCKS)}) -->\n.*?<!-- /\1 -->", re.DOTALL)
