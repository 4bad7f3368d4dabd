"""The tries of scripts/tries.py: what is put where, and whether it is to be refused."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tries import CONFIG, EAGLE3, MEDUSA, RUN, SPECULATORS, Prepare, Try

HUGE = "9" * 5000
NESTED = "[" * 100_000 + "]" * 100_000
BAD_BYTES = {
    "empty": b"", "null": b"null", "list": b"[]", "number": b"1", "text": b'"x"', "half": b'{"schema": 3, "spec',
    "latin1": '{"name": "é"}'.encode("latin-1"), "utf16": '{"name": "x"}'.encode("utf-16"), "bom": b"\xef\xbb\xbf{}",
    "nul": b"\0" * 4096, "nested": NESTED.encode(), "digits": f'{{"schema": {HUGE}}}'.encode(),
    "objects nested": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "gzip": gzip.compress(b"{}"), "html": b"<html>",
    "infinity": b'{"schema": Infinity}', "surrogate": b'{"name": "\\ud800"}', "yaml": b"a: 1\nb: 2\n",
}  # fmt: skip
"""Contents that no JSON object of ours has."""

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 10**6, 10**30, 1e308, float("nan"), float("inf"), "", "x", "12", [], ["x"], [[]], {}, {"x": 1},
)  # fmt: skip
"""Values that a field of foreign JSON may have instead of its own."""

HOSTILE = {
    "escape": "a\x1b[31mred\x1b]0;title\x07b", "c1": "a\x9b31mred", "bidi": "a\u202egnp.exe\u2066b",
    "ci": "a\n::error::planted\n::add-mask::x", "ci carriage": "a\r\n##[error]planted", "azure": "##vso[task.setvariable]x",
    "separator": "a\u2028::error::planted\x85::b", "markup": "[bold red]x[/] [link=http://e]y[/]",
    "tags": "<script>alert(1)</script>", "formula": "=HYPERLINK(\"http://e\")", "at": "@SUM(1)", "long": "w" * 300 + " ::error::x",
    "spaces": "a" * 150 + "  " + "::error::x " * 5, "zero width": "a\u200b\u2060\ufeffb", "surrogate": "a\udc80b", "nul": "a\0b",
    "combining": "a" + "\u0301" * 500, "path": "../../x", "percent": "%0A::error::x", "latex": r"\input{/etc/passwd}",
    "brackets": "[/]", "tag chars": "a\U000e0041\U000e0042b", "backspace": "ab\b\bcd", "form feed": "a\f::error::b",
}  # fmt: skip
"""Names that would steer a terminal, a CI or a page."""


def write(name: str, content: str | bytes) -> Prepare:
    """Puts a file there."""

    def prepare(_: Path) -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return prepare


def edit(name: str, change: Callable[[Any], Any]) -> Prepare:
    """Changes the JSON in a file: what `change` returns, or what it did in place."""

    def prepare(_: Path) -> None:
        path = Path(name)
        content = json.loads(path.read_text())
        new = change(content)
        path.write_text(json.dumps(content if new is None else new))

    return prepare


def setting(path: tuple[Any, ...], value: Any) -> Callable[[Any], None]:
    """Sets one place of an object."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def without(path: tuple[Any, ...]) -> Callable[[Any], None]:
    """Takes one place out of an object."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in an object, also those that hold others; of a list the first place only."""
    if path:
        yield path
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in items:
        yield from leaves(value, (*path, key))


def odd(content: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Each place of an object, each odd value, and a copy of the object that has it there."""
    for path in leaves(content):
        for value in ODD:
            made = json.loads(json.dumps(content))
            setting(path, value)(made)
            yield path, value, made


# -- options -----------------------------------------------------------------------------------------------------------


def options() -> Iterator[Try]:
    """Values of `run` and of the commands that read."""
    for flags, refuse in (
        (("--k", "0"), True), (("--k", "-1"), True), (("--k", "1000000"), True), (("--k", HUGE), True),
        (("--k", "129"), True), (("--k", "128"), False), (("--k", "x"), True), (("--k", ""), True), (("--k", "1.5"), True),
        (("--seeds", "0-99999999999"), True), (("--seeds", "0-"), True), (("--seeds", "-"), True), (("--seeds", "-1"), True),
        (("--seeds", "3-1"), True), (("--seeds", ","), True), (("--seeds", ""), True), (("--seeds", "1,1"), True),
        (("--seeds", f"0-{10**7}"), True), (("--seeds", str(2**32)), True), (("--seeds", str(2**64)), True),
        (("--seeds", HUGE), True), (("--seeds", "0x10"), True), (("--seeds", "٣"), True), (("--seeds", "1_0"), True),
        (("--seeds", "0-3-5"), True), (("--seeds", "0-7"), False), (("--seeds", "4,9-11"), False), (("--seeds", str(2**32 - 1)), False),
        (("--temp", "nan"), True), (("--temp", "inf"), True), (("--temp", "-1"), True), (("--temp", "1e9"), True),
        (("--top-p", "0"), True), (("--top-p", "nan"), True), (("--top-p", "2"), True), (("--top-k", "-1"), True),
        (("--top-k", str(2**31)), True), (("--top-k", HUGE), True), (("--batch", "0"), True), (("--batch", str(10**9)), True),
        (("--batch", HUGE), True), (("--batch", "64"), False), (("--max-tokens", "0"), True), (("--max-tokens", HUGE), True),
        (("--max-tokens", str(10**12)), True), (("--limit", "0"), True), (("--limit", HUGE), True), (("--limit", "1000000"), False),
        (("--shuffle-seed", HUGE), True), (("--shuffle-seed", "-5"), False), (("--until", "abc"), True), (("--until", "nan%"), True),
        (("--until", "0%"), True), (("--until", "-1%"), True), (("--until", "inf%"), True), (("--until", "1e-300%"), None), (("--suite", ""), None),
        (("--suite", ","), None), (("--suite", "nope"), True), (("--suite", "."), True), (("--suite", ".."), True),
        (("--suite", "/"), True), (("--suite", "../../etc/passwd"), True), (("--suite", "own.jsonl,own.jsonl"), True),
        (("--suite", "own.jsonl,own.yaml"), True), (("--suite", "/dev/null"), True), (("--suite", "\0"), True),
        (("--target", ""), True), (("--target", " "), True), (("--target", "."), True), (("--target", "/"), True), (("--target", "~"), None), (("--target", "~nosuchuser"), True),
        (("--target", "\udc80\udcff"), True), (("--target", "a/../../b"), True), (("--target", "http://x/y"), True),
        (("--target", "x" * 5000), True), (("--target", "a\nb"), True), (("--target", "\0"), True), (("--target", "zoo@x"), True), (("--target", "@"), True),
        (("--draft", ""), True), (("--draft", " "), True), (("--draft", "."), True), (("--draft", "nope"), True),
        (("--draft", "\udc80"), True), (("--draft", "lk-eagle3@"), None), (("--draft", "@x"), True), (("--draft", "\x1b[31m"), True),
        (("--draft", "a\n::error::b"), True), (("--out", ""), True), (("--out", " "), None), (("--out", "own.jsonl"), True),
        (("--out", "own.jsonl/x"), True), (("--out", "/proc/x"), True), (("--out", "/dev/null"), True), (("--out", "n" * 300), True),
        (("--out", "a\0b"), True), (("--out", "\udc80x"), None), (("--data-dir", ""), True), (("--data-dir", "nope"), None), (("--data-dir", "own.jsonl"), None),
        (("--replay", ""), True), (("--replay", "nope"), True), (("--replay", "own.jsonl"), True), (("--replay", "half"), True),
        (("--against", ""), True), (("--against", "good"), True), (("--until", "1%", "--against", "nope"), True),
        (("--until", "1%", "--against", ""), True), (("--speedup-batch", "0"), None), (("--speedup", "--speedup-batch", "0"), True),
        (("--speedup", "--speedup-batch", "1-99999999999"), True), (("--speedup", "--speedup-batch", ""), True), (("--speedup", "--speedup-batch", HUGE), True),
        (("--rejection", "synthetic"), True), (("--rejection", "x"), True), (("--drafting", "x"), True),
        (("--temp", "0", "--drafting", "probabilistic"), True), (("--bogus",), True), (("--json",), False), ((), False),
        (("extra",), True), (("--record", "--no-record"), None),
    ):  # fmt: skip
        yield Try("options", f"run {' '.join(flags)[:60]!a}", (*RUN, *flags), refuse)
    yield from key_values()
    yield from readers()


def key_values() -> Iterator[Try]:
    """--engine-arg and --template-arg."""
    deep = "{a: " * 2000 + "1" + "}" * 2000
    flow = "[" * 20_000 + "]" * 20_000
    for flag in ("--engine-arg", "--template-arg"):
        for value, refuse in (
            ("", True), ("=", True), ("x", True), ("=1", True), (f"x={deep}", True), (f"x={flow}", True), (f"x={HUGE}", True),
            ("x=2024-99-99", None), ("x=2024-01-01", None), ("x=!!python/object/apply:os.system [id]", None), ("x=&a [*a]", True), ("x={a: &b [1], c: *b}", None),
            ("x={1: 2}", None), ("x={[1]: 2}", None), ("x={null: 1, x: 2}", None), ("x=!!set {a}", None), ("x=!!binary aGk=", None),
            ("x=.nan", None), ("x=\udc80", None), ("x=\x1b[31m", None), ("x\n::error::y=1", None), ("x=1e400", None), ("x=0x" + "f" * 9000, True),
            ("x=- a\n- b", None), ("x='", None), ("x=\0", None), ("x==", None),
        ):  # fmt: skip
            yield Try("options", f"{flag} {value[:40]!a}", (*RUN, flag, value), refuse)
        for value in (
            "token=S3CR3T", "HF_TOKEN=S3CR3T", "hf-token=S3CR3T", "hfToken=S3CR3T", "Api_Key=S3CR3T", "api-key=S3CR3T", "apiKey=S3CR3T", "apikey=S3CR3T",
            "x={token: S3CR3T}", "x={a: [{password: S3CR3T}]}", "hf_overrides={auth: {access_token: S3CR3T}}", "aws_secret_access_key=S3CR3T",
            "x={credentials: {a: S3CR3T}}", "url=https://user:S3CR3T@host/x", "x={u: 'http://a/?token=S3CR3T'}", "x={u: ['s3://k:S3CR3T@b']}", "passwd=S3CR3T",
            "x={client_secret: S3CR3T}", "bearer=S3CR3T", "x={Authorization: S3CR3T}", "private_key=S3CR3T", "x={'api key': S3CR3T}", "x=hf_" + "S3CR3T" * 6,
        ):  # fmt: skip
            yield Try("secrets", f"{flag} {value[:40]}", (*RUN, flag, value), True)
    for value in ("max_num_batched_tokens=4096", "tokenizer_mode=slow", "x={max_tokens: 3}", "x={bos_token_id: 1}", "x={num_speculative_tokens: 2}", "tokenizer=abc"):  # fmt: skip
        yield Try("secrets", f"harmless {value}", (*RUN, "--engine-arg", value), False)


def readers() -> Iterator[Try]:
    """Commands without what they need, or with what is no run."""
    for name in ("show", "validate", "compare", "table", "baseline", "explain", "plot", "report", "export", "check"):
        extra = {
            "baseline": ("-o", "b.json"),
            "export": ("--as", "model-card"),
            "check": ("--baseline", "base.json"),
        }.get(name, ())
        yield Try("options", f"{name} alone", (name,), True)
        for run in (
            "",
            " ",
            "/",
            "nope",
            "own.jsonl",
            "/dev/null",
            "target",
            "\0",
            "\udc80",
            "n" * 5000,
            "a\n::error::b",
            "\x1b[31m",
        ):
            yield Try("options", f"{name} {run[:20]!a}", (name, run, *extra), True)
    for arguments in (
        ("table", "good", "--layout", "x"), ("table", "good", "--format", "x"), ("table", "good", "--over", ""), ("table", "good", "--over", "nope"),
        ("check", "good", "--baseline", ""), ("check", "good", "--baseline", "nope"), ("check", "good", "--baseline", "base.json", "--margin", "nan"),
        ("check", "good", "--baseline", "base.json", "--margin", ""), ("check", "good", "--baseline", "base.json", "--margin", "99"), ("check", "good", "--baseline", "base.json", "--margin", "-1%"),
        ("check", "good", "--baseline", "base.json", "--position-margin", "nan"), ("check", "good", "--baseline", "base.json", "--junit", ""),
        ("check", "good", "--baseline", "base.json", "--markdown", ""), ("check", "good", "--baseline", "base.json", "--junit", "."), ("check", "good", "--baseline", "base.json", "--junit", "/proc/x/y"),
        ("baseline", "good", "-o", ""), ("baseline", "good", "-o", "."), ("baseline", "good", "-o", "own.jsonl/x"), ("baseline", "half", "-o", "b.json"),
        ("export", "good", "--as", "x"), ("export", "good", "--as", "model-card", "-o", ""), ("export", "good", "--as", "model-card", "-o", "."), ("export", "half", "--as", "model-card"),
        ("report", "good", "--out", ""), ("report", "good", "--out", "."), ("report", "good", "--verify", ""), ("report", "good", "--verify", "nope"), ("report", "good", "--verify", "."),
        ("plot", "good", "--kind", "x"), ("plot", "good", "--kind", "forest", "-o", ""), ("plot", "good", "--kind", "forest"), ("plot", "--kind", "known-bad", ""), ("plot", "--kind", "gaussian", "good"),
        ("compare", "good"), ("compare", "good", ""), ("ls", "x"), ("ls", "runs", "--root", ""), ("ls", "runs", "--root", "nope"), ("ls", "runs", "--root", "own.jsonl"),
        ("verify", "--kernels", "--vllm", ""), ("verify", "--kernels", "--vllm", "nope"), ("verify", "--kernels", "--vllm", "own.jsonl"), ("verify", "--kernels", "--samples", "0"), ("verify", "--kernels", "--k", "3"),
        ("verify", "--target", "", "--draft", "lk-eagle3"), ("verify", "--target", "zoo", "--draft", "lk-eagle3", "--samples", "1"), ("verify", "--target", "zoo", "--draft", "lk-eagle3", "--out", ""),
        ("verify", "--target", "zoo", "--draft", "lk-eagle3", "--k", "1000"), ("verify", "--target", "zoo", "--draft", "lk-eagle3", "--prompt", ""),
        ("selftest", "--rates", "x"), ("selftest", "--rates", "2"), ("selftest", "--rates", "nan"), ("selftest", "--tau", "nan"), ("selftest", "--tau", "0"), ("selftest", "--steps", "0"), ("selftest", "--runs", ""), ("selftest", "--out", ""),
        ("demo", "--out", ""), ("nope",), ("--nope",),
    ):  # fmt: skip
        yield Try("options", " ".join(arguments)[:70], arguments, True)


# -- suites ------------------------------------------------------------------------------------------------------------


def suites() -> Iterator[Try]:
    """Row files and descriptions."""
    good = b'{"turns": ["a b"]}\n'
    for name, content in BAD_BYTES.items():
        yield Try("suites", f"rows {name}", (*RUN, "--suite", "x.jsonl"), True, write("x.jsonl", content))
        yield Try(
            "suites",
            f"rows then {name}",
            (*RUN, "--suite", "x.jsonl"),
            None if name in ("empty",) else True,
            write("x.jsonl", good + content),
        )
        yield Try("suites", f"yaml {name}", (*RUN, "--suite", "x.yaml"), True, write("x.yaml", content))
    for value in ODD:
        text = json.dumps(value)
        legal = value == "x" or value == "12" or value == ["x"]
        yield Try(
            "suites",
            f"turns {text[:30]}",
            (*RUN, "--suite", "x.jsonl"),
            not legal,
            write("x.jsonl", f'{{"turns": {text}}}\n'),
        )
        yield Try(
            "suites",
            f"prompt {text[:30]}",
            (*RUN, "--suite", "x.jsonl"),
            not legal,
            write("x.jsonl", f'{{"prompt": {text}}}\n'),
        )
        for field in (
            "name",
            "version",
            "max_tokens",
            "data",
            "template",
            "system",
            "category",
            "fields",
            "pinned",
            "prompt_note",
            "nope",
        ):
            base = {"name": "own", "version": 1, "data": {"file": "own.jsonl"}}
            yield Try(
                "suites",
                f"yaml {field} {text[:20]}",
                (*RUN, "--suite", "x.yaml"),
                True if field == "nope" else None,
                write("x.yaml", json.dumps(base | {field: value})),
            )
    for name, body in (
        ("date", "name: x\nversion: 1\ndata: {file: own.jsonl}\nsystem: 2024-99-99\n"), ("digits", f"name: x\nversion: {HUGE}\ndata: {{file: own.jsonl}}\n"),
        ("nested", "a: " + "[" * 3000 + "]" * 3000), ("python", "!!python/object/apply:os.system ['id']"), ("bomb", "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
        ("merge", "<<: 1\n"), ("merge list", "a: &a {<<: *a}\n"), ("complex key", "? [1, 2]\n: 3\n"), ("tabs", "a:\t- b\n\tc"), ("two documents", "a: 1\n---\nb: 2\n"), ("sexagesimal", "name: 1:99:99\nversion: 1\n"),
        ("binary", "name: !!binary '%%'\n"), ("timestamp", "name: x\nversion: 2001-12-14t21:59:43.10-99:99\n"), ("float", "name: x\nversion: 1e999999\ndata: {file: own.jsonl}\n"), ("int", "version: 0b" + "1" * 20000),
        ("octal", "version: 0o99\nname: x\n"), ("set", "!!set {a, b}"), ("omap", "!!omap [a: 1]"), ("null key", "null: 1\n"), ("anchor", "*nope"), ("control", "a: \x01\n"),
    ):  # fmt: skip
        refuse = None if name == "date" else True  # a date is text
        yield Try("suites", f"yaml {name}", (*RUN, "--suite", "x.yaml"), refuse, write("x.yaml", body))
    for name, rows in (
        ("latin", b"\xe9\n"), ("binary", bytes(range(256))), ("missing", None), ("/etc/passwd", None), ("..", None), ("", None),
    ):  # fmt: skip
        body = {
            "name": "x",
            "version": 1,
            "data": {"file": "own.jsonl"},
            "pinned": {"rows": name if rows is None else "p.rows", "dataset_hash": "0"},
        }
        prepare = write("x.yaml", json.dumps(body))
        yield Try(
            "suites",
            f"pins {name}",
            (*RUN, "--suite", "x.yaml"),
            True,
            both(prepare, write("p.rows", rows)) if rows else prepare,
        )
    for file in ("", ".", "..", "/etc/passwd", "/dev/null", "/proc/self/environ", "nope", "\\0", "x" * 400):
        yield Try(
            "suites",
            f"data {file[:20]}",
            (*RUN, "--suite", "x.yaml"),
            True,
            write("x.yaml", json.dumps({"name": "x", "version": 1, "data": {"file": file}})),
        )
    for name, text in HOSTILE.items():
        prepare = both(write("x.yaml", json.dumps({"name": text, "version": 1, "data": {"file": "own.jsonl"}})))
        yield Try("hostile", f"suite called {name}", (*RUN, "--suite", "x.yaml"), None, prepare)
        yield Try(
            "hostile",
            f"field called {name}",
            (*RUN, "--suite", "x.yaml"),
            True,
            write("x.yaml", json.dumps({"name": "x", "version": 1, text: 1, "data": {"file": "own.jsonl"}})),
        )
        yield Try(
            "hostile",
            f"id {name}",
            (*RUN, "--suite", "x.jsonl"),
            None,
            write(
                "x.jsonl",
                json.dumps({"id": text, "prompt": text}) + "\n" + json.dumps({"id": text, "prompt": text}) + "\n",
            ),
        )


def both(*prepares: Prepare) -> Prepare:
    """One after another."""

    def prepare(place: Path) -> None:
        for one in prepares:
            one(place)

    return prepare


# -- stored runs -------------------------------------------------------------------------------------------------------

READ = (
    ("show", "good"), ("show", "good", "--json"), ("validate", "good"), ("compare", "good", "other"), ("table", "good"), ("table", "good", "--format", "json"),
    ("check", "good", "--baseline", "base.json"), ("check", "other", "--baseline", "good"), ("baseline", "good", "-o", "b.json"), ("explain", "good"), ("report", "good", "other", "-o", "r.html"),
    ("export", "good", "--as", "model-card"), ("export", "good", "--as", "speculation-profile"), ("export", "good", "--as", "lm-eval-style-json"), ("plot", "good", "--kind", "positions", "-o", "p.png"),
    ("ls", "runs", "--root", "."), (*RUN, "--max-tokens", "12", "--out", "good"), ("run", "--target", "zoo", "--draft", "kl-eagle3", "--temp", "1", "--replay", "good"),
    (*RUN, "--until", "1%", "--against", "good"),
)  # fmt: skip
"""Commands that read a run."""
MORE = (
    ("merge", "good", "other", "-o", "m"), ("watch", "http://127.0.0.1:9", "--baseline", "base.json"), ("watch", "http://127.0.0.1:9", "--baseline", "good"),
    ("baseline", "good", "--texts", "-o", "b.json"), ("compare", "good", "other", "--json"), ("plot", "good", "other", "--kind", "forest", "-o", "p.png"),
    ("table", "good", "other", "--layout", "categories", "--format", "csv"), ("explain", "good", "--json"),
)  # fmt: skip
"""And those that do besides something else."""


def reading(
    item: str,
    prepare: Prepare,
    refuse: bool | None,
    commands: tuple[tuple[str, ...], ...] = READ,
    group: str = "stored runs",
) -> Iterator[Try]:
    """The same damage before several commands; `ls` lists what it cannot read."""
    for arguments in commands:
        listed = None if arguments[0] == "ls" else refuse
        yield Try(group, f"{item}: {' '.join(arguments)[:40]}", arguments, listed, prepare)


def stored() -> Iterator[Try]:
    """Damaged, edited, doubled and foreign run folders."""
    for name, content in BAD_BYTES.items():
        for file in ("run.json", "turns.parquet", "steps.parquet"):
            yield from reading(
                f"{file} {name}",
                write(f"good/{file}", content),
                True,
                READ if file == "run.json" else READ[:3] + READ[6:9],
            )
        yield from reading(f"outputs {name}", write("good/outputs.jsonl", content + b"\n"), None, (READ[10], READ[17]))
        yield from reading(
            f"journal {name}", write("half/journal.jsonl", content + b"\n"), None if name in ("empty",) else True, HALF
        )
        yield from reading(
            f"journal line {name}",
            append("half/journal.jsonl", content + b"\n"),
            None if name in ("empty",) else True,
            HALF,
        )
        yield from reading(
            f"journal torn {name}", append("half/journal.jsonl", content.replace(b"\n", b"")), False, HALF[:1]
        )
        for file in ("run.json", "turns.parquet", "outputs.jsonl"):
            yield from reading(f"{file} {name}", write(f"good/{file}", content), None, MORE)
    template = json.loads(SAMPLE)
    for path in leaves(template):
        for value in ODD:
            command = READ[hash_of(path, value) % len(READ)]
            yield from reading(
                f"run.json {'.'.join(map(str, path))} = {json.dumps(value)[:20]}",
                edit("good/run.json", setting_if(path, value)),
                None,
                (command,),
            )
        yield from reading(
            f"run.json without {'.'.join(map(str, path))}",
            edit("good/run.json", without_if(path)),
            None,
            (READ[hash_of(path, "gone") % len(READ)],),
        )
    for path, value in (
        (("spec", "k"), 10**9), (("spec", "seeds"), list(range(200_000))), (("conversations",), 10**12), (("spec", "temperature"), 1e400), (("fingerprint", "engine", "k"), 10**12),
        (("segments",), [{}] * 3), (("spec", "batch"), 10**30), (("spec", "seeds"), [2**70]), (("problems",), ["\x1b[31m"] * 3), (("patches",), [None]), (("created",), "yesterday"), (("created",), 7), (("finished",), "x" * 10**6),
    ):  # fmt: skip
        yield from reading(f"absurd {path[-1]} {str(value)[:12]}", edit("good/run.json", setting(path, value)), None)
    for change, refuse in TABLES.items():
        yield from reading(f"tables {change}", table(change), refuse)
        yield from reading(f"tables {change}", table(change), None, MORE)
    for name in ("turns.parquet", "steps.parquet", "run.json"):
        yield from reading(
            f"no {name}",
            lambda _, name=name: Path("good", name).unlink(),
            True,
            READ[:16] if name == "run.json" else READ,
        )
        yield from reading(f"{name} a folder", folder(f"good/{name}"), True)
        commands = READ[:16] if name == "run.json" else READ
        yield from reading(f"{name} unreadable", loop(f"good/{name}"), True, commands)
    for name, change in JOURNAL_EDITS.items():
        yield from reading(f"journal {name}", edit_line("half/journal.jsonl", change), True, HALF)


HALF = (
    ("show", "half"),
    ("validate", "half"),
    ("table", "half"),
    ("compare", "half", "good"),
    ("ls", "runs", "--root", "."),
    (*RUN, "--max-tokens", "12", "--out", "half"),
)
"""Commands that read an unfinished run."""

JOURNAL_EDITS: dict[str, Callable[[Any], Any]] = {
    "without turns": lambda line: line.pop("turns") and None,
    "turns text": lambda line: line.update(turns="x"),
    "seed text": lambda line: line.update(seed="0"),
    "seed float": lambda line: line.update(seed=0.5),
    "suite null": lambda line: line.update(suite=None),
    "conversation list": lambda line: line.update(conversation=[1]),
    "steps text": lambda line: line["turns"][0].update(steps="abc"),
    "steps of two": lambda line: line["turns"][0].update(steps=[[1, 1]]),
    "steps huge": lambda line: line["turns"][0].update(steps=[[10**30, 1, 2]]),
    "steps negative": lambda line: line["turns"][0].update(steps=[[5, -3, 1]]),
    "steps floats": lambda line: line["turns"][0].update(steps=[[5.5, 1, 2]]),
    "record garbage": lambda line: line["turns"][0].update(recorded="!!!"),
    "record short": lambda line: line["turns"][0].update(recorded="AAAA"),
    "record number": lambda line: line["turns"][0].update(recorded=7),
    "token ids number": lambda line: line["turns"][0].update(token_ids=7),
    "turn null": lambda line: line.update(turns=[None]),
    "turn number text": lambda line: line["turns"][0].update(turn="one"),
    "finish reason number": lambda line: line["turns"][0].update(finish_reason=7),
    "skipped list": lambda line: line.update(skipped=[]),
    "padded huge": lambda line: line["turns"][0].update(padded_steps=10**30),
    "a list": lambda line: [line],
}

TABLES: dict[str, bool] = {
    "doubled": True, "doubled steps": True, "half of the steps": True, "no rows": True, "one row less": True, "one turn less": True, "accepted 7": True, "drafted 99": True,
    "accepted floats": True, "accepted text": True, "accepted null": True, "without drafted": True, "without suite": True, "without finish_reason": True, "seed text": True, "negative": True,
    "other suite": True, "other seed": True, "other finish": True, "swapped files": True, "shuffled": False, "extra column": False, "ratio 2": True, "ratio text": True, "huge": True, "renumbered": True,
    "category numbers": True, "index kept": None, "column twice": None, "category lists": True, "conversation bytes": True, "committed 0": True, "unsigned": None, "dictionary": None, "output_tokens 1": True,
}  # fmt: skip
"""Edits of the tables, and whether they are to be refused."""


def table(change: str) -> Prepare:
    """One of `TABLES`."""

    def prepare(_: Path) -> None:
        import pandas as pd

        turns, steps = (pd.read_parquet(f"good/{name}.parquet") for name in ("turns", "steps"))
        if change == "swapped files":
            Path("good/turns.parquet").rename("x")
            Path("good/steps.parquet").rename("good/turns.parquet")
            Path("x").rename("good/steps.parquet")
            return
        if change == "doubled":
            turns, steps = (pd.concat([frame, frame], ignore_index=True) for frame in (turns, steps))
        elif change == "doubled steps":
            steps = pd.concat([steps, steps], ignore_index=True)
        elif change == "half of the steps":
            steps = steps.iloc[: len(steps) // 2]
        elif change == "no rows":
            turns, steps = turns.iloc[:0], steps.iloc[:0]
        elif change == "one row less":
            steps = steps.iloc[:-1]
        elif change == "one turn less":
            turns = turns.iloc[1:]
        elif change == "accepted 7":
            steps.loc[3, "accepted"] = 7
        elif change == "drafted 99":
            steps.loc[3, "drafted"] = 99
        elif change == "negative":
            steps.loc[3, "accepted"] = -1
        elif change == "committed 0":
            steps.loc[3, "committed"] = 0
        elif change == "huge":
            steps["accepted"] = steps["accepted"].astype("int64") + 2**62
        elif change.startswith("without "):
            turns, steps = (
                frame.drop(columns=change.removeprefix("without "), errors="ignore") for frame in (turns, steps)
            )
        elif change == "accepted floats":
            steps["accepted"] = steps["accepted"] + 0.5
        elif change == "accepted text":
            steps["accepted"] = steps["accepted"].astype(str)
        elif change == "accepted null":
            steps["accepted"] = steps["accepted"].astype("Int64").mask(steps.index == 2)
        elif change == "seed text":
            turns["seed"] = steps["seed"] = "0"
        elif change == "other suite":
            turns["suite"], steps["suite"] = "elsewhere", "elsewhere"
        elif change == "other seed":
            turns["seed"], steps["seed"] = 9, 9
        elif change == "other finish":
            turns.loc[0, "finish_reason"] = "vanished"
        elif change == "shuffled":
            steps = steps.sample(frac=1, random_state=0)
        elif change == "extra column":
            turns["extra"] = 1
        elif change == "ratio 2":
            steps["ratio_1"] = 2.0
        elif change == "ratio text":
            steps["ratio_1"] = "x"
        elif change == "renumbered":
            steps["step"] = steps["step"] + 1
        elif change == "category numbers":
            turns["category"] = 3
        elif change == "category lists":
            turns["category"] = [[1]] * len(turns)
        elif change == "conversation bytes":
            turns["conversation"], steps["conversation"] = b"x", b"x"
        elif change == "index kept":
            turns = turns.set_index("conversation", drop=False).rename_axis("i")
        elif change == "unsigned":
            steps["accepted"] = steps["accepted"].astype("uint8")
        elif change == "dictionary":
            turns["suite"], steps["suite"] = turns["suite"].astype("category"), steps["suite"].astype("category")
        elif change == "output_tokens 1":
            turns["output_tokens"] = 1
        turns.to_parquet("good/turns.parquet")
        if change == "column twice":
            import pyarrow as pa
            import pyarrow.parquet as pq

            made = pa.Table.from_pandas(turns)
            pq.write_table(made.append_column("suite", made.column("suite")), "good/turns.parquet")
        steps.to_parquet("good/steps.parquet")

    return prepare


def setting_if(path: tuple[Any, ...], value: Any) -> Callable[[Any], None]:
    """Sets a place if the run has it."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            try:
                content = content[key]
            except (KeyError, IndexError):
                return
        content[path[-1]] = value

    return change


def without_if(path: tuple[Any, ...]) -> Callable[[Any], None]:
    """Takes a place out if the run has it."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            try:
                content = content[key]
            except (KeyError, IndexError):
                return
        if isinstance(content, dict):
            content.pop(path[-1], None)
        elif content:
            del content[path[-1]]

    return change


def append(name: str, content: bytes) -> Prepare:
    """Puts something behind a file."""

    def prepare(_: Path) -> None:
        with Path(name).open("ab") as file:
            file.write(content)

    return prepare


def edit_line(name: str, change: Callable[[Any], Any]) -> Prepare:
    """Changes the second line of a file of JSON lines."""

    def prepare(_: Path) -> None:
        lines = Path(name).read_text().splitlines()
        content = json.loads(lines[1])
        new = change(content)
        lines[1] = json.dumps(content if new is None else new)
        Path(name).write_text("\n".join(lines) + "\n")

    return prepare


def folder(name: str) -> Prepare:
    """A directory where a file should be."""

    def prepare(_: Path) -> None:
        Path(name).unlink()
        Path(name).mkdir()

    return prepare


def loop(name: str) -> Prepare:
    """A link to itself where a file should be."""

    def prepare(_: Path) -> None:
        Path(name).unlink()
        Path(name).symlink_to(Path(name).name)

    return prepare


def hash_of(*parts: Any) -> int:
    """A number that is the same on every machine."""
    import zlib

    return zlib.crc32(repr(parts).encode())


SAMPLE = "{}"
"""run.json of the world, set by `all_tries`."""


# -- baselines, verifications ------------------------------------------------------------------------------------------


def baselines(sample: Any) -> Iterator[Try]:
    """Baseline files, plain and compressed."""
    check = ("check", "good", "--baseline", "base.json")
    for name, content in BAD_BYTES.items():
        yield Try("baselines", name, check, True, write("base.json", content))
        yield Try(
            "baselines",
            f"gz {name}",
            ("check", "good", "--baseline", "b.gz"),
            True,
            write("b.gz", gzip.compress(content)),
        )
    yield Try(
        "baselines",
        "gz torn",
        ("check", "good", "--baseline", "b.gz"),
        True,
        write("b.gz", gzip.compress(b"{}" * 999)[:-9]),
    )
    yield Try(
        "baselines",
        "gz flipped",
        ("check", "good", "--baseline", "b.gz"),
        True,
        write("b.gz", gzip.compress(os.urandom(999))[:200] + b"x" * 50),
    )
    yield Try("baselines", "gz bomb", ("check", "good", "--baseline", "b.gz"), True, bomb("b.gz"))
    for path in leaves(sample):
        for value in ODD:
            yield Try(
                "baselines",
                f"{'.'.join(map(str, path))} = {json.dumps(value)[:20]}",
                check,
                None,
                edit("base.json", setting(path, value)),
            )
        yield Try("baselines", f"without {'.'.join(map(str, path))}", check, None, edit("base.json", without(path)))


def bomb(name: str) -> Prepare:
    """Twelve gigabytes in twelve megabytes."""

    def prepare(_: Path) -> None:
        once = gzip.compress(b" " * (1 << 28))
        Path(name).write_bytes(once * 48)

    return prepare


def verifications(sample: Any) -> Iterator[Try]:
    """verify.json, given and found."""
    for name, content in BAD_BYTES.items():
        yield Try(
            "foreign JSON",
            f"verify.json {name}",
            ("report", "good", "--verify", "verify.json", "-o", "r.html"),
            True,
            write("verify.json", content),
        )
        yield Try(
            "foreign JSON",
            f"verify.json found {name}",
            ("report", "good", "-o", "r.html"),
            False,
            write("results/verify/x/verify.json", content),
        )
    for path in leaves(sample):
        for value in ODD:
            at = f"{'.'.join(map(str, path))} = {json.dumps(value)[:20]}"
            if hash_of(at) % 3 == 0 or len(path) == 1:
                yield Try(
                    "foreign JSON",
                    f"verify.json {at}",
                    ("report", "good", "--verify", "verify.json", "-o", "r.html"),
                    None,
                    edit("verify.json", setting(path, value)),
                )


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoints() -> Iterator[Try]:
    """config.json and weights of targets and drafters."""
    for role, at in (
        ("target", ("--target", "target", "--draft", "ngram", "--k", "2")),
        ("drafter", ("--target", "target", "--draft", "drafter", "--k", "2")),
    ):
        line = ("run", "--temp", "1", "--suite", "own.jsonl", *at)
        yield Try("checkpoints", f"{role} as it is", line, False)
        for name, content in BAD_BYTES.items():
            yield Try(
                "checkpoints",
                f"{role} config {name}",
                line,
                True if name not in ("bom", "infinity") else None,  # both are read, and say nothing
                write(f"{role}/config.json", content),
            )
            yield Try(
                "checkpoints",
                f"{role} tokenizer_config {name}",
                line,
                None,
                write(f"{role}/tokenizer_config.json", content),
            )
            yield Try(
                "checkpoints", f"{role} safetensors {name}", line, None, write(f"{role}/model.safetensors", content)
            )
        for kind, config in (("eagle3", EAGLE3), ("medusa", MEDUSA), ("speculators", SPECULATORS), ("llama", CONFIG)):
            if role == "target" and kind in ("medusa", "speculators"):
                continue
            for path, value, made in odd(config):
                yield Try(
                    "checkpoints",
                    f"{role} {kind} {'.'.join(map(str, path))} = {json.dumps(value)[:20]}",
                    line,
                    None,
                    write(f"{role}/config.json", json.dumps(made)),
                )
    line = ("run", "--temp", "1", "--suite", "own.jsonl", "--target", "target", "--draft", "drafter", "--k", "2")
    for extra in (
        {"eagle_aux_hidden_state_layer_ids": 7}, {"eagle_aux_hidden_state_layer_ids": [-1]}, {"eagle_aux_hidden_state_layer_ids": [10**12]}, {"eagle_aux_hidden_state_layer_ids": ["x"]}, {"eagle_config": 7},
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": "x"}}, {"speculators_config": {"verifier": "x"}}, {"speculators_config": {"proposal_methods": 7}}, {"speculators_config": {"proposal_methods": ["x"]}}, {"speculators_config": 7},
        {"medusa_num_heads": 100_000_000}, {"num_heads": "3"}, {"num_nextn_predict_layers": 10**9}, {"n_predict": 10**9}, {"text_config": 7}, {"text_config": {"hidden_size": "x"}}, {"model": {"hidden_size": []}}, {"architectures": 7}, {"architectures": "x"},
        {"architectures": [None]}, {"model_type": None}, {"model_type": ["x"]}, {"method": ["x"]}, {"auto_map": {"AutoModel": "evil.py"}}, {"quantization_config": "x"}, {"num_hidden_layers": 10**12}, {"vocab_size": 10**18}, {"transformer_layer_config": []},
        {"model_type": "eagle", "method": ["eagle3"]}, {"model_type": "eagle", "method": {}}, {"model_type": "eagle", "model": "x"}, {"tie_weights": "no", "model_type": "mlp_speculator", "n_predict": 10**8},
    ):  # fmt: skip
        yield Try(
            "checkpoints",
            f"drafter with {json.dumps(extra)[:50]}",
            line,
            None,
            write("drafter/config.json", json.dumps(EAGLE3 | extra)),
        )
        yield Try(
            "checkpoints",
            f"target with {json.dumps(extra)[:50]}",
            line,
            None,
            write("target/config.json", json.dumps(CONFIG | extra)),
        )
    for name, prepare in (
        ("no config", lambda _: Path("drafter/config.json").unlink()), ("config a folder", folder("drafter/config.json")), ("config a loop", loop("drafter/config.json")),
    ):  # fmt: skip
        yield Try("checkpoints", name, line, True, prepare)


# -- hostile text ------------------------------------------------------------------------------------------------------


def hostile() -> Iterator[Try]:
    """Names in stored runs and baselines that would steer what shows them."""
    commands = (
        *READ[:15],
        ("ls", "runs", "--root", "."),
        *(("table", "good", "--format", f) for f in ("csv", "latex", "html")),
        ("table", "good", "--layout", "categories"),
        ("show", "half"),
    )
    for name, text in HOSTILE.items():
        for where, prepare in (
            ("drafter", edit("good/run.json", lambda c, t=text: (c["spec"].update(draft=t), c["fingerprint"]["draft"].update(name=t), None)[-1])),
            ("target", edit("good/run.json", lambda c, t=text: (c["spec"].update(target=t), c["fingerprint"]["target"].update(name=t, model=t), None)[-1])),
            ("problems", edit("good/run.json", lambda c, t=text: c.update(problems=[t], command=["speceval", t], name=t))),
            ("patches", edit("good/run.json", lambda c, t=text: (c["patches"] and c["patches"][0].update(title=t, id=t, reason=t), c["environment"].update(platform=t, packages={t: t}), None)[-1])),
            ("suite", rename_suite(text)),
        ):  # fmt: skip
            for arguments in commands:
                yield Try("hostile", f"{where} {name}: {' '.join(arguments)[:36]}", arguments, None, prepare)
        yield Try("hostile", f"run folder {name}", ("ls", "runs", "--root", "."), None, move(text))
        yield Try(
            "hostile",
            f"broken run folder {name}",
            ("ls", "runs", "--root", "."),
            None,
            both(write("good/run.json", b"{}"), move(text)),
        )
        yield Try(
            "hostile",
            f"baseline {name}",
            ("check", "good", "--baseline", "base.json"),
            None,
            edit("base.json", lambda c, t=text: c.update(run=t, created=t, command=[t])),
        )
        yield Try(
            "hostile",
            f"verify line {name}",
            ("report", "good", "--verify", "verify.json", "-o", "r.html"),
            None,
            edit("verify.json", lambda c, t=text: c.update(line=t, verdict=t)),
        )
        yield Try("hostile", f"allow {name}", ("compare", "good", "other", "--allow", text.replace("\0", "")), True)
        yield Try("hostile", f"command {name}", (text.replace("\0", ""),), True)


def move(name: str) -> Prepare:
    """The run's folder under another name."""

    def prepare(_: Path) -> None:
        Path("good").rename(re.sub("[/\0]", "_", name)[:60])

    return prepare


def rename_suite(text: str) -> Prepare:
    """The suite of the finished run has another name, everywhere."""

    def prepare(_: Path) -> None:
        import pandas as pd

        safe = text.encode("utf-8", "replace").decode()
        content = json.loads(Path("good/run.json").read_text())
        content["spec"]["suites"] = [text]
        content["fingerprint"]["suites"] = {text: next(iter(content["fingerprint"]["suites"].values()))}
        Path("good/run.json").write_text(json.dumps(content))
        for name in ("turns", "steps"):
            frame = pd.read_parquet(f"good/{name}.parquet")
            frame.assign(suite=safe).to_parquet(f"good/{name}.parquet")

    return prepare


def published() -> Iterator[Try]:
    """Folders of published figures."""
    source = {
        "kind": "published",
        "title": "t",
        "source": "s",
        "figures": "f.csv",
        "definition": "tau",
        "decimals": 2,
        "suites": {},
        "footnotes": [],
    }
    row = "target,drafter,K,setup,checkpoint,T,dataset,tau,speedup,source\nx,EAGLE-3,3,KL,c,0,MT,2.0,,s\n"
    line = ("table", "pub")
    for name, content in BAD_BYTES.items():
        yield Try("foreign JSON", f"source.yaml {name}", line, True, write("pub/source.yaml", content))
        yield Try(
            "foreign JSON",
            f"figures {name}",
            line,
            True if name != "empty" else None,
            both(write("pub/source.yaml", json.dumps(source)), write("pub/f.csv", content)),
        )
    for path, value, made in odd(source):
        yield Try(
            "foreign JSON",
            f"source.yaml {path[-1]} = {json.dumps(value)[:20]}",
            line,
            None,
            both(write("pub/source.yaml", json.dumps(made)), write("pub/f.csv", row)),
        )
    for column in range(10):
        for value in ("", "x", "nan", "1e999", HUGE, "-1", "\x1b[31m", "=1+1"):
            cells = row.splitlines()[1].split(",")
            cells[column] = value
            yield Try(
                "foreign JSON",
                f"figure column {column} {value[:8]!a}",
                line,
                None,
                both(
                    write("pub/source.yaml", json.dumps(source)),
                    write("pub/f.csv", row.splitlines()[0] + "\n" + ",".join(cells) + "\n"),
                ),
            )


def all_tries(world: Path) -> list[Try]:
    """Every try, in order."""
    global SAMPLE
    SAMPLE = (world / "good" / "run.json").read_text()
    baseline = json.loads((world / "base.json").read_text())
    verified = json.loads((world / "verify.json").read_text())
    return [
        *options(), *suites(), *stored(), *baselines(baseline), *verifications(verified), *published(), *checkpoints(), *hostile(),
    ]  # fmt: skip
