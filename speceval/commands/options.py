"""Options that several commands share, and how their values are read and printed. Imports nothing heavy."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from speceval import terminal
from speceval.commands.help import ALIASES, EXAMPLES, FEW, GROUPS
from speceval.errors import UserError, meant

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
RunDirectory = Annotated[Path, typer.Argument(help="Directory of a run.")]
OutFile = Annotated[Path | None, typer.Option("--out", "-o", help="File to write [default: standard output].")]
Ray = Annotated[str | None, typer.Option(help="Measure on the engines of a Ray cluster: auto, local or host:port.")]
Replicas = Annotated[int | None, typer.Option(help="With --ray: engines [default: as many as have room].")]
GpusPerReplica = Annotated[
    int | None,
    typer.Option(help="With --ray: accelerators of each; 0 is a CPU [default: the engine's tensor_parallel_size]."),
]
OutDirectory = Annotated[Path | None, typer.Option("--out", "-o", help="Directory to write [default: results/<name>].")]

_COMPLAINTS: list[type[Any]] = [*typer.BadParameter.__bases__[0].__subclasses__(), *typer.BadParameter.__subclasses__()]
NoSuchOption, MissingParameter = (
    next(kind for kind in _COMPLAINTS if kind.__name__ == name) for name in ("NoSuchOption", "MissingParameter")
)
"""Complaints of the option parser; typer names no public class for them."""


OLD_FLAGS = {
    "run": {"--baseline": "--speedup", "--no-baseline": "--no-speedup", "--baseline-batch": "--speedup-batch"},
    "table": {"--baseline": "--over"},
}
"""Command -> flags that have got another name, which work until 0.3.0: docs/start/old-forms.md."""


_LOOKS_LIKE_ONE = re.compile(r"--[A-Za-z][\w-]*(=.*)?", re.DOTALL)
"""A word that is an option's name, or a misspelled one; a value of that form is given as --option=VALUE."""
_URL = re.compile(r"[A-Za-z][\w+.-]*://")
LONGEST = 60
"""Characters of the values of an option that stand beside its name in the help."""
SETTINGS: dict[str, Any] = {
    "help_option_names": ["--help", "-h"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
"""Of every command: `--max_tokens` is `--max-tokens`."""


class Command(TyperCommand):
    """A command that still reads its `OLD_FLAGS`, takes `ALIASES`, and whose help has sections, values and examples."""

    dropped: list[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line. Raises `UserError` for what the parser would take for something else, or drop."""
        old = OLD_FLAGS.get(str(self.name), {})
        words = [_renamed(word, old) for word in args]
        if ctx.resilient_parsing:  # for a shell that completes what is half typed
            self.dropped = []
            return list(super().parse_args(ctx, words))
        self._check_values(ctx, words)
        try:
            if unexpected := self.make_parser(ctx).parse_args(list(words))[1]:
                raise UserError(self._unexpected(ctx, unexpected, words))
            return list(super().parse_args(ctx, words))
        except NoSuchOption as error:
            typed = next((word for word in words if word.startswith(error.option_name)), error.option_name)
            error.message = f"No such option: {typed.partition('=')[0]}{self._meant(ctx, error.option_name)}"
            error.possibilities = None
            raise
        except MissingParameter as error:
            self.name_choices()
            name = error.param.opts[0] if error.param.param_type_name == "option" else error.param.name.upper()
            raise UserError(f"{name} is missing: {error.param.get_help_record(ctx)[1]}") from None

    def _check_values(self, ctx: Any, words: list[str]) -> None:
        """Raise `UserError` for an option whose value is missing, so that what follows would be taken for it, and for a
        URL that would be taken for a path; keep for `invoke` which value is dropped because a later one counts.
        """
        self.dropped = []
        takers = self.takers()
        known = {name for option in self.params for name in (*option.opts, *option.secondary_opts)}
        values: dict[str, str] = {}
        words = words[: words.index("--")] if "--" in words else words
        for word, following in zip(words, [*words[1:], ""], strict=False):
            name, equals, value = word.partition("=")
            option = takers.get(name.replace("_", "-"))
            if option is None:
                continue
            if not equals and (not following or following in known or _LOOKS_LIKE_ONE.fullmatch(following)):
                self.name_choices()
                follows = f"{following} is another option" if following else "nothing follows"
                raise UserError(f"{name}: its value is missing, {follows}; {': '.join(_told(option, ctx))}")
            value = value if equals else following
            if "<path>" in _told(option, ctx)[0] and _URL.match(value):
                raise UserError(f"{name} {value}: a URL, where a path on this machine is to be")
            before = values.get(option.name, value)
            if value != before and not option.multiple:
                self.dropped.append(f"{name} {value} took the place of {before}")
            values[option.name] = value

    def _unexpected(self, ctx: Any, unexpected: list[str], words: list[str]) -> str:
        """What is wrong with words that belong to no option and to no argument."""
        first, place = unexpected[0], words.index(unexpected[0])
        before = next((word for word in reversed(words[:place]) if word.startswith("-")), "")
        named = f"unexpected {', '.join(repr(word) for word in unexpected)}"
        option = self.takers().get(before.replace("_", "-"))
        if option is not None and words.index(before) < place - 1:
            return f"{named}: {before} takes one value; {': '.join(_told(option, ctx))}"
        if before == words[place - 1] and re.fullmatch(r"--?[A-Za-z][\w-]*", before):
            return f"{named}: {before} takes no value"
        pieces = re.sub(r"\{(.*?)\}", lambda match: match[1].upper(), " ".join(self.collect_usage_pieces(ctx)[1:]))
        takes = f"takes {pieces} and options" if pieces else "takes options alone"
        target = f": --target {first}?" if "target" in ctx.command.params[0].name and "--target" not in words else ""
        return f"{named}: `{self.name}` {takes}{target}"

    def takers(self) -> dict[str, Any]:
        """Every name of an option that a value follows -> the option."""
        own = {name: option for option in self.params if takes_value(option) for name in option.opts}
        return own | self.aliases()

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and say on stderr, if it is not refused, which values were dropped."""
        try:
            return super().invoke(ctx)
        except UserError:
            self.dropped = []
            raise
        finally:
            for line in self.dropped:
                terminal.say(f"warning: {line}")

    def make_parser(self, ctx: Any) -> Any:
        """The parser, with `ALIASES`."""
        parser = super().make_parser(ctx)
        for alias, parameter in self.aliases().items():
            action = "append" if parameter.multiple else "store"
            parser.add_option(obj=parameter, opts=[alias], dest=parameter.name, action=action)
        return parser

    def aliases(self) -> dict[str, Any]:
        """`ALIASES` that this command takes -> the option."""
        names = {name: parameter for parameter in self.params for name in parameter.opts}
        return {alias: names[flag] for alias, flag in ALIASES.items() if flag in names and alias not in names}

    def _meant(self, ctx: Any, unknown: str) -> str:
        """Which flags an unknown one may have been."""
        flags = {
            name: name for parameter in self.get_params(ctx) for name in (*parameter.opts, *parameter.secondary_opts)
        }
        flags |= {alias: parameter.opts[0] for alias, parameter in self.aliases().items()}
        if "--engine-arg" in flags and unknown.startswith("--"):
            from speceval import engines

            if (name := unknown.removeprefix("--").replace("-", "_")) in engines.find("vllm").arguments():
                return f"; it is one of vLLM's: --engine-arg {name}=VALUE"
        return meant(unknown, flags, 2, 0.75, says=flags)

    def name_choices(self) -> None:
        """Import the registries and put their names where help prints what an option or argument takes."""
        parameter: Any
        for parameter in self.params:
            values = getattr(parameter.callback, "values", None)
            if not values:
                continue
            names = "|".join(values())
            if parameter.param_type_name == "argument" or len(names) > LONGEST:
                head, bracket, default = parameter.help.partition(" [default")
                parameter.help = f"{head.rstrip('.')}: {', '.join(values())}{bracket}{default or '.'}"
            else:
                parameter.metavar = f"<{names}>"

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        narrow(formatter)
        self.name_choices()
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, these in `GROUPS` where there are many."""
        told = [(parameter, parameter.get_help_record(ctx)) for parameter in self.get_params(ctx)]
        sections: dict[str, list[Any]] = {}
        for parameter, row in told:
            if row is not None:
                title = "Options" if len(told) <= FEW else group(str(parameter.name))
                title = "Arguments" if parameter.param_type_name == "argument" else title
                sections.setdefault(title, []).append(_told(parameter, ctx))
        for title in sorted(sections, key=["Arguments", *GROUPS, "Options"].index):
            with formatter.section(title):
                formatter.write_dl(sections[title], col_max=30 if formatter.width > 60 else formatter.width // 3)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write examples, and the other names of flags."""
        with formatter.section("Examples"):
            for line in EXAMPLES.get(str(self.name), ()):
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        if aliases := self.aliases():
            others = ", ".join(f"{alias} = {parameter.opts[0]}" for alias, parameter in aliases.items())
            with formatter.section("Also understood"):
                inside = formatter.width - formatter.current_indent
                for line in textwrap.wrap(others, inside, break_on_hyphens=False):
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def group(parameter: str) -> str:
    """The section of the help that an option is in."""
    return next((title for title, names in GROUPS.items() if parameter in names), "Options")


def _told(parameter: Any, ctx: Any) -> tuple[str, str]:
    """A parameter's names and kind of value, and what it is for, as the help has them."""
    names, text = parameter.get_help_record(ctx)
    return re.sub(r"<list\[(\w+)\]>", lambda match: f"<{match[1].lower()}>", names), text


def narrow(formatter: Any) -> None:
    """Let help fit a terminal of fewer columns than the parser reckons with."""
    formatter.width = min(formatter.width, max(shutil.get_terminal_size().columns - 1, 24))


def takes_value(parameter: Any) -> bool:
    """Whether a parameter is an option that a value follows."""
    return parameter.param_type_name == "option" and not parameter.is_flag


def _renamed(word: str, old: dict[str, str]) -> str:
    """A word of the command line with today's flag in it, and a line about it on stderr."""
    flag, equals, value = word.partition("=")
    if flag not in old:
        return word
    print(f"warning: {flag} is now called {old[flag]}; the old name goes in 0.3.0", file=sys.stderr)
    return f"{old[flag]}{equals}{value}"


def build(name: str, function: Callable[..., None]) -> Any:
    """The command that `function` is, ready to parse a command line."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    fields = getattr(function, "of_spec", None)
    command = app.command(name, cls=Command, context_settings=SETTINGS)
    command(function if fields is None else _with_flags(function, **fields))
    return typer.main.get_command(app)


def of_spec(*fields: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of these fields of `RunSpec` [all], and their values, read, as its parameter `request`.

    `request` goes by the fields' names. `defaults`: those of the command, where they are not the flag's own. The flags
    are made when the command is used: the list of all commands needs no `RunSpec`.
    """

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        function.of_spec = {"names": fields, "defaults": defaults}  # type: ignore[attr-defined]
        return function

    return mark


def _with_flags(function: Callable[..., None], names: tuple[str, ...], defaults: dict[str, Any]) -> Callable[..., None]:
    from speceval.protocol import FIELD, RunSpec

    names = names or tuple(RunSpec.model_fields)
    flags = [_parameter(name, defaults.get(name, FIELD)) for name in names]
    own = inspect.signature(function, eval_str=True).parameters
    others = [own[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in own if name != "request"]

    def command(**values: Any) -> None:
        request = {name: _read(name, values.pop(name)) for name in names}
        function(request=request, **values)

    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature([*flags, *others])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*flags, *others)}
    return command


def _parameter(field: str, default: Any) -> inspect.Parameter:
    """A field of `RunSpec` as a parameter that typer makes an option of."""
    from speceval.protocol import FIELD, RunSpec, flag

    info, form = RunSpec.model_fields[field], flag(field)
    if default is FIELD:
        default = form.default
    if default is FIELD:
        default = inspect.Parameter.empty if info.is_required() else info.default
    kind: Any = {"value": info.annotation, "pairs": list[str], "path": Path}.get(form.read, str)
    kind = str if any(get_origin(part) is Literal for part in (kind, *get_args(kind))) else kind
    name = f"{form.name}/--no-{form.name[2:]}" if kind is bool else form.name
    limits = choices(lambda: form.offered, form.refused) if form.offered else {}
    return inspect.Parameter(
        field,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[
            kind | None if default is None else kind, typer.Option(name, help=info.description, **limits)
        ],
    )


def _read(field: str, value: Any) -> Any:
    """What the field means by the text of its flag."""
    from speceval.protocol import flag

    form = flag(field)
    return READERS[form.read](value, form.name) if form.read in READERS else value


def choices(values: Callable[[], Iterable[str]], known: tuple[str, ...] = ()) -> dict[str, Any]:
    """For `typer.Option` or `typer.Argument`: the values that may be given, as a registry holds them.

    `values` imports the registry for the command's own help and when the command runs, not before. `known`: values that
    are not offered and that the command refuses itself, with its reason.
    """

    def check(ctx: typer.Context, value: str | None) -> str | None:
        offered = () if value is None or ctx.resilient_parsing else tuple(values())
        if offered and value not in (*offered, *known):
            raise typer.BadParameter(f"'{value}' is not one of {', '.join(map(repr, offered))}.")
        return value

    check.values = values  # type: ignore[attr-defined]
    return {"callback": check, "autocompletion": lambda: list(values())}


def output(piped: int = 160) -> Console:
    """Where tables go; `piped`: columns where that is no terminal."""
    return terminal.console(piped=piped)


def print_json(output: str, content: dict[str, Any]) -> None:
    """Print a command's one JSON object; `output`: its kind, a key of `schema.OUTPUTS`."""
    import json

    from speceval.store.schema import versioned

    print(json.dumps(versioned(output, content), allow_nan=False))  # ASCII: no terminal obeys it


def write(text: str, out: Path | None) -> None:
    """Write text to a file, whole or not at all, and say so; without a file to standard output. Raises `UserError`."""
    from speceval.files import write_whole

    if out is None:
        sys.stdout.write(text)
        return
    if out.is_dir():
        raise UserError(f"--out {out}: a directory: name a file in it")
    write_whole(out, text)
    terminal.wrote(out)


def show(result: Any, as_json: bool) -> None:
    """Print a result of the API: as it shows itself, or as one JSON object."""
    import json

    if as_json:
        print(json.dumps(result.as_json(), ensure_ascii=False, allow_nan=False))
    else:
        output().print(result)


def given(ctx: typer.Context, parameter: str) -> bool:
    """Whether the user set an option on the command line."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def only(ctx: typer.Context, chosen: str, allowed: tuple[str, ...]) -> None:
    """Refuse options that the flag `chosen` leaves without a meaning."""
    from speceval.protocol import RunSpec, flag

    for parameter in ctx.params:
        if parameter not in allowed and given(ctx, parameter):
            name = "json" if parameter == "as_json" else parameter
            given_as = flag(name).name if name in RunSpec.model_fields else f"--{name.replace('_', '-')}"
            raise UserError(f"{given_as}: has no meaning with {chosen}: leave it out")


def split(names: str, flag: str = "") -> list[str]:
    """Comma-separated names. Raises `UserError` for commas alone."""
    values = [name.strip() for name in names.split(",") if name.strip()]
    if names and not values:
        raise UserError(f"{flag} {names}: holds no name")
    return values


def seeds(text: str, flag: str = "--seeds") -> tuple[int, ...]:
    """ "0,1,5-7" as (0, 1, 5, 6, 7)."""
    from speceval.protocol import numbers

    return numbers(text, flag)


def percent(text: str, flag: str) -> float | None:
    """ "1%" as 0.01; None for nothing."""
    if not text:
        return None
    try:
        return float(text.strip().removesuffix("%")) / (100 if "%" in text else 0)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{flag} {text}: not a percentage such as 1% or 0.5%") from None


def pairs(items: list[str] | None, flag: str) -> dict[str, Any]:
    """ "key=value" items; the value is read as YAML (numbers, true, {a: 1}), anything else is a string.

    Raises `UserError`, also for a value that JSON could not hold.
    """
    from speceval.foreign import NotYaml, parse_yaml, plain

    values: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not re.fullmatch(r"\w[\w.-]*", key) or not equals:
            raise UserError(f"{flag} {item[:80]}: not of the form key=value")
        try:
            read = parse_yaml(value, f"{flag} {key}")
        except NotYaml:
            read = plain(value, f"{flag} {key}")
        values[key.replace("-", "_")] = read
    return values


def rate(text: str | None, flag: str) -> float | str | None:
    """ "2.5" as 2.5; "inf" as it is; None for nothing."""
    if text is None or text.strip() == "inf":
        return text and text.strip()
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{flag} {text[:80]}: not a number of conversations a second, or inf") from None


READERS: dict[str, Callable[..., Any]] = {
    "names": split,
    "numbers": seeds,
    "percent": percent,
    "pairs": pairs,
    "rate": rate,
}
"""`Flag.read` -> what reads the text (and the flag's name)."""
