"""The record of a run: every field is explained, what is stored survives reading and writing, nothing else is taken."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.records import content, run_meta

from speceval import cli
from speceval.errors import UserError
from speceval.exactness import selftest
from speceval.store import schema, write_meta
from speceval.store.older import migrate
from speceval.store.schema import OUTPUTS, SCHEMA_VERSION, Fingerprint, RunMeta, differences, parse

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
STORED = sorted(REFERENCE.glob("*/*/run.json"))
KL, LK = (str(REFERENCE / "demo" / f"{loss}-eagle3-T1-probabilistic") for loss in ("kl", "lk"))


def test_every_field_has_a_line_that_says_what_it_is() -> None:
    tree = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    without = [
        f"{record.name}.{ast.unparse(field.target)}"
        for record in tree.body
        if isinstance(record, ast.ClassDef)
        for field, after in zip(record.body, [*record.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert without == []


def held(part: Any, whole: Any) -> bool:
    """Whether `whole` says all that `part` says, however deep."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(name in whole and held(part[name], whole[name]) for name in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(part) == len(whole) and all(map(held, part, whole))
    return part == whole and type(part) is type(whole)


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
def test_a_stored_run_is_written_back_as_it_was_but_for_what_later_versions_add(path: Path, tmp_path: Path) -> None:
    stored = json.loads(path.read_text())
    meta = parse(stored, path)
    write_meta(tmp_path, meta)
    written = json.loads((tmp_path / "run.json").read_text())
    assert meta.fingerprint_hash == stored["fingerprint_hash"] and parse(written, path) == meta
    if stored["schema"] == SCHEMA_VERSION:
        assert held(stored, written) and meta.fingerprint.hash == meta.fingerprint_hash
    else:
        assert held(migrate(stored), written)


def test_a_value_that_is_not_written_back_is_seen() -> None:
    stored = content()
    assert held(stored, stored | {"later": 1})
    for name, place in PLACES.items():
        changed = copy.deepcopy(stored)
        if not place(changed):
            continue
        place(changed)[sorted(place(changed))[0]] = name
        assert not held(stored, changed)


def test_stored_runs_know_which_of_their_patches_come_with_the_drafting_method() -> None:
    old = content(fingerprint__patches=["cpu-expand", "cpu-rotary", "v1-medusa"])
    for schema_version in (1, 2, 3):
        fingerprint = parse(old | {"schema": schema_version}, Path("run.json")).fingerprint
        assert fingerprint.method_patches == ["cpu-rotary", "v1-medusa"] and len(fingerprint.patches) == 3
    told = content(fingerprint__patches=["v1-medusa", "later"], fingerprint__method_patches=["later"])
    assert parse(told, Path("run.json")).fingerprint.method_patches == ["later"]


def test_a_migration_leaves_what_it_was_given_alone() -> None:
    old = content(schema=1)
    before = json.dumps(old)
    migrate(old)
    assert json.dumps(old) == before


PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "": lambda made: made,
    "spec.": lambda made: made["spec"],
    "fingerprint.": lambda made: made["fingerprint"],
    "fingerprint.target.": lambda made: made["fingerprint"]["target"],
    "fingerprint.suites.demo.": lambda made: made["fingerprint"]["suites"]["demo"],
    "fingerprint.engine.": lambda made: made["fingerprint"]["engine"],
    "segments.0.": lambda made: made["segments"][0],
    "segments.0.counters.": lambda made: made["segments"][0]["counters"],
    "patches.0.": lambda made: made["patches"][0],
    "environment.": lambda made: made["environment"],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_key_of_a_later_version_is_named_in_one_line(place: str) -> None:
    made = content()
    PLACES[place](made)["colour"] = "blue"
    with pytest.raises(UserError, match=rf"^run\.json: {place}colour is not known to this speceval: update it$"):
        parse(made, Path("run.json"))


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("spec.", "segments.0.counters.")])
def test_a_missing_key_is_named_in_one_line(place: str) -> None:
    """A request and counters have defaults."""
    made = content()
    gone = sorted(PLACES[place](made).keys() - {"schema", "finished", "skipped", "spec", "fingerprint"})[0]
    del PLACES[place](made)[gone]
    with pytest.raises(UserError, match=rf"^run\.json: {place}{gone}: Field required: the file is damaged$"):
        parse(made, Path("run.json"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "done"),
        ("conversations", "7"),
        ("conversations", True),
        ("problems", [1]),
        ("fingerprint__seeds", [0.5]),
        ("fingerprint__limit", "3"),
        ("fingerprint__sampling__top_k", True),
        ("fingerprint__drafting", "lucky"),
        ("segments", {}),
        ("spec", None),
        ("fingerprint", 1),
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_value_of_another_kind_is_one_line(field: str, value: Any, version: int) -> None:
    made = content(**{field: value}) | {"schema": version}
    with pytest.raises(UserError, match=r"^run\.json: .*the file is damaged$") as raised:
        parse(made, Path("run.json"))
    assert "\n" not in str(raised.value)


def test_what_there_is_none_of_is_not_written() -> None:
    written = run_meta(finished=None).as_json()
    assert not {"stopping", "speedup", "finished"} & written.keys() and written["schema"] == SCHEMA_VERSION
    assert written["spec"]["limit"] is None and written["fingerprint"]["replay"] is None


def test_differences_name_the_field_and_both_values() -> None:
    one = run_meta().fingerprint
    other = run_meta(fingerprint__engine__dtype="bfloat16", fingerprint__chat_template_kwargs={"new": 1}).fingerprint
    assert differences(one, one) == []
    assert "engine.dtype: float32 -> bfloat16" in differences(one, other)
    assert "chat_template_kwargs.new: absent -> 1" in differences(one, other)


def test_every_field_of_a_fingerprint_moves_its_hash() -> None:
    changes: dict[str, Any] = {
        "target__weights": "b", "draft__name": "b", "suites__demo__version": 2, "prompts": "b", "chat_template": "b",
        "chat_template_kwargs": {"a": 1}, "sampling__top_k": 5, "drafting": "greedy", "seeds": [1], "limit": 1,
        "shuffle_seed": 1, "engine__dtype": "b", "replay": "b", "patches": [],
        "draft_args": {"a": 1}, "stratified": True, "drafter": {"a": 1}, "rate": 2.5, "evidence": "histogram",
            "served": {"model": "b"},
    }  # fmt: skip
    derived = {"method_patches"}  # from `patches`
    assert {name.partition("__")[0] for name in changes} == set(Fingerprint.model_fields) - derived
    hashes = {run_meta(**{f"fingerprint__{name}": value}).fingerprint.hash for name, value in changes.items()}
    assert len(hashes | {run_meta().fingerprint.hash}) == len(changes) + 1


COMMANDS = {
    "run": ("show", LK, "--json"),
    "compare": ("compare", KL, LK, "--json"),
    "check": ("check", LK, "--baseline", KL, "--json"),
    "baseline": ("baseline", KL, "-o", "base.json", "--json"),
    "explain": ("explain", KL, "--json"),
    "table": ("table", KL, "--format", "json"),
    "ls": ("ls", "suites", "--json"),
    "validate": ("validate", KL, "--json"),
    "selftest": ("selftest", "--json", "--out", "selftest.json"),
    "sweep": ("sweep", "demo", "--dry-run", "--json"),
    "tune": (
        *("tune", "--target", "zoo", "--draft", "kl-eagle3", "--engine", "simulated", "--k", "1", "--batch", "1"),
        *("--bursts", "3", "--max-tokens", "4", "--no-confirm", "--json"),
    ),
}
"""A command that prints each kind of output; of `ELSEWHERE` see their own tests."""

ELSEWHERE = {"verify", "capture", "replay", "probe", "watch"}
"""Kinds of output for which an engine, a server or a capture is needed."""


@pytest.mark.parametrize("output", sorted(OUTPUTS.keys() - ELSEWHERE))
def test_every_json_output_says_its_schema(
    output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(selftest, "run", lambda *_: {"ok": True})
    monkeypatch.setitem(OUTPUTS, output, 7)
    cli.app([*COMMANDS[output]], standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == 7 and next(iter(printed)) == "schema"
    if output == "selftest":
        assert json.loads(Path("selftest.json").read_text()) == printed


@pytest.mark.parametrize("what", ["targets", "drafters", "suites", "patches", "runs"])
def test_listings_are_rows_of_text(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.app(["ls", what, "--json", "--root", str(REFERENCE)], standalone_mode=False)
    listed = json.loads(capsys.readouterr().out)
    assert listed["what"] == what and len(listed["rows"]) > 0
    assert all(isinstance(value, str) for row in listed["rows"] for value in row.values())


def test_a_record_takes_no_other_keys_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="colour"):
        RunMeta(**run_meta().model_dump(), colour="blue")  # type: ignore[call-arg]


def timed(*spans: tuple[float, float], interrupted: tuple[int, ...] = ()) -> RunMeta:
    """A run of stretches (began, seconds) of 100 tokens each."""
    segments = [
        schema.Segment(
            conversations=1, tokens=100, seconds=seconds, counters=None, began=began, interrupted=number in interrupted
        )
        for number, (began, seconds) in enumerate(spans)
    ]
    return run_meta().model_copy(update={"segments": segments})


def test_wall_seconds_are_those_in_which_any_engine_measured() -> None:
    """Two side by side, one that joins them late, and the run resumed after an hour."""
    meta = timed((1000, 10), (1000, 8), (1005, 9), (4600, 3))
    assert (meta.wall_seconds, meta.engine_seconds) == (17, 30)
    assert timed((1000, 10), (1002, 3)).wall_seconds == 10
    assert RunMeta.model_validate(meta.model_dump(mode="json")).wall_seconds == 17


def test_wall_seconds_of_earlier_versions_are_known_where_stretches_follow_each_other() -> None:
    assert timed((0, 10), (0, 5), interrupted=(0,)).wall_seconds == 15  # interrupted and resumed
    assert timed((0, 10)).wall_seconds == 10
    side_by_side = timed((0, 10), (0, 9))
    assert side_by_side.wall_seconds is None and side_by_side.engine_seconds == 19
    assert "began" not in side_by_side.as_json()["segments"][0]
