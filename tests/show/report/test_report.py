"""The page as readers, browsers and printers get it: self-contained, escaped, in order, quick."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.records import altered
from support.report_runs import write_run
from typer.testing import CliRunner

from speceval.cli import app
from speceval.errors import UserError
from speceval.show.report import build, verification, write
from speceval.show.report.figures import TITLES, pictures
from speceval.store import StoredRun
from speceval.store.schema import PatchState

NAME = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> \x1b[31mred\x1b[0m "
    "\\textbf{x}$%&_# {{ 7*7 }} 😀 \u202eשלום"
)
HOSTILE = NAME + "\ud800"
"""A lone surrogate comes with JSON; no table could hold one."""
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.broken: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take most of the time of a page."""
    monkeypatch.setattr(build, "pictures", lambda *_, **__: ([], []))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The source of a page of one run and of one of two runs."""
    directory = tmp_path_factory.mktemp("runs")
    a = write_run(directory / "a", draft="kl-eagle3", seed=1)
    b = write_run(directory / "b", accept=0.7, seed=2)
    return [build.render(build.gather(runs)) for runs in ([a], [a, b])]


def assert_sound(source: str) -> Page:
    page = Page(source)
    assert page.broken == [] and page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    return page


def test_a_page_needs_no_network(pages: list[str]) -> None:
    for source in pages:
        page = assert_sound(source)
        for _, attributes in page.tags:
            for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not page.all("script", "link", "iframe", "object", "embed", "base")
        assert "url(" not in source and "@import" not in source


def test_headings_are_in_order_and_regions_named(pages: list[str]) -> None:
    for source in pages:
        page = assert_sound(source)
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        ids = {attributes.get("id") for _, attributes in page.tags}
        assert all(section["aria-labelledby"] in ids for section in page.all("section"))
        assert all((link["href"] or "")[1:] in ids for link in page.all("a"))
        assert page.all("html")[0]["lang"] == "en" and len(page.all("main")) == 1
        assert all(div.get("tabindex") == "0" and div.get("aria-label") for div in page.all("div") if div.get("role"))


def test_tables_have_captions_and_scopes_and_pictures_have_texts(pages: list[str]) -> None:
    for source in pages:
        page = assert_sound(source)
        assert len(page.all("table")) == len(page.all("caption")) > 5
        assert all(cell.get("scope") in ("row", "col", "colgroup") for cell in page.all("th"))
        assert all(picture.get("alt") for picture in page.all("img"))
        assert len(page.all("figure")) >= 3


def test_a_token_is_told_by_its_element_and_not_by_colour_alone(pages: list[str]) -> None:
    css = (Path(build.__file__).parent / "style.css").read_text()
    assert "text-decoration: underline" in css and "dotted" in css and "font-weight: 700" in css
    kinds = {tag for tag, attributes in Page(pages[0]).tags if attributes.get("class") == "token"}
    assert kinds == {"u", "b", "i", "span"}
    assert all(word in Page(pages[0]).text for word in ("accepted", "recovered", "bonus"))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_a_contrast_of_at_least_4_5_light_and_dark() -> None:
    """WCAG 2.2, 1.4.3 (AA)."""
    css = (Path(build.__file__).parent / "style.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", css, re.S):
        colours = {
            name: "#" + "".join(2 * c for c in value[1:]) if len(value) == 4 else value
            for name, value in re.findall(r"--(\w+): (#\w+)", block)
        }
        for ink, papers in (
            ("ink", ("paper", "tint", "accepted", "recovered", "bonus", "other")),
            *((name, ("paper",)) for name in ("soft", "link", "good", "look", "bad")),
        ):
            for paper in papers:
                low, high = sorted((luminance(colours[ink]), luminance(colours[paper])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def test_hostile_prompts_outputs_and_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    other = tmp_path / "<b>run & co"
    run = write_run(
        other, suites=(NAME,), draft=NAME, user=lambda row: HOSTILE, output=lambda ids: HOSTILE,
        meta={"command": ["speceval", NAME], "problems": [NAME],
              "patches": [dict.fromkeys(PatchState.model_fields, NAME) | {"bound": False}],
              "environment": {"python": NAME, "platform": NAME, "cpus": 2, "packages": {NAME: NAME}}},
    )  # fmt: skip
    out = tmp_path / "page.html"
    write([run, replace(run, directory=tmp_path / "twin")], out)
    source = out.read_text(encoding="utf-8")
    page = assert_sound(source)
    assert not page.all("script") and "onerror" not in {name for _, found in page.tags for name in found}
    assert all((picture["src"] or "").startswith("data:") for picture in page.all("img"))
    assert "\x1b" not in source and "\u202e" not in source and "{{ 7*7 }}" in page.text
    assert "␛[31mred" in page.text and "[U+202E]שלום" in page.text and "\\textbf{x}$%&_#" in page.text


@pytest.mark.usefixtures("unpainted")
def test_one_megabyte_in_a_line_does_not_reach_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", user=lambda row: "a" * 1_000_000, output=lambda ids: "😀" * 1_000_000)
    assert len(build.render(build.gather([run]))) < 500_000


def test_a_run_of_1319_conversations_is_a_small_page_soon(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", conversations=1319, seeds=1, steps=120, k=7, suites=("gsm8k",))
    out, start = tmp_path / "page.html", time.process_time()
    size = write([run], out)
    assert time.process_time() - start < 10
    assert size == out.stat().st_size < 1_000_000  # 5 MB are allowed


def statements(runs: list[StoredRun], **arguments: Any) -> dict[str, str]:
    return {one.text: one.state for one in build.gather(runs, **arguments)["statements"]}


@pytest.mark.parametrize("accept", [0.0, 1.0])
def test_degenerate_runs_have_their_figures(tmp_path: Path, accept: float) -> None:
    runs = [write_run(tmp_path / name, accept=accept, draft=name, conversations=1, seeds=1, k=1) for name in ("a", "b")]
    drawn, left_out = pictures(runs, (), compared=True)
    assert len(drawn) == len(TITLES) and left_out == []


def test_figures_are_left_out_where_there_is_nothing_to_draw_or_compare(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1)
    nothing = replace(run, steps=run.steps.assign(drafted=0, accepted=0))
    drawn, left_out = pictures([nothing], (), compared=False)
    assert drawn == [] and len(left_out) == 3 and all("has drafts" in line for line in left_out)


def said(runs: list[StoredRun], begin: str, **arguments: Any) -> str:
    """The state of the one statement that begins so (after the runs' names)."""
    found = [state for text, state in statements(runs, **arguments).items() if begin in text]
    assert len(found) == 1, statements(runs, **arguments)
    return found[0]


@pytest.mark.usefixtures("unpainted")
def test_the_verdict_of_one_run_says_tau_books_and_verification(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert said([run], "On demo a step emits") == "result"
    assert said([run], "The books balance") == "good"
    assert (
        said([run], "Not verified on this engine: run speceval verify --target zoo --draft lk-eagle3 --temp 1")
        == "look"
    )


@pytest.mark.usefixtures("unpainted")
def test_books_that_do_not_balance_unfinished_and_forced_runs_are_said_first_hand(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    wrong = altered(run, problems=["12 steps are missing"])
    assert said([wrong], "The books do not balance: 12 steps are missing") == "bad"
    running = altered(run, status="running")
    assert said([running], "The run is unfinished") == "look"
    forced = altered(run, spec__rejection="synthetic")
    assert said([forced], "Acceptance was forced") == "bad"


@pytest.mark.usefixtures("unpainted")
def test_clearly_better_and_equal_runs_get_plain_sentences(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", draft="kl-eagle3", conversations=60, accept=0.4, seed=1)
    b = write_run(tmp_path / "b", conversations=60, accept=0.8, seed=2)
    c = write_run(tmp_path / "c", draft="tv-eagle3", conversations=60, accept=0.4, seed=3)
    assert said([a, b], "lk-eagle3 emits more tokens per step than kl-eagle3: +") == "result"
    assert said([b, a], "kl-eagle3 emits fewer tokens per step than lk-eagle3: -") == "result"
    assert said([a, c], "tv-eagle3 and kl-eagle3 cannot be told apart") == "result"


@pytest.mark.usefixtures("unpainted")
def test_runs_of_different_protocols_are_not_compared_unless_allowed(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", draft="kl-eagle3")
    b = write_run(tmp_path / "b")
    b = altered(b, fingerprint__sampling__temperature=0.5)
    assert said([a, b], "Not compared") == "bad"
    page = build.gather([a, b])
    assert page["differences"] == []
    assert {row["name"] for row in page["fields"] if row["differs"]} >= {"sampling.temperature", "draft.name"}
    allowed = ["sampling.temperature"]
    assert said([a, b], "Compared although this differs: sampling.temperature", allow=allowed) == "look"
    assert len(build.gather([a, b], allow=allowed)["differences"]) == 1
    with pytest.raises(UserError, match="no such field"):
        build.gather([a, b], allow=["nonsense"])


SHAPES: list[dict[str, int]] = [{}, {"conversations": 1, "seeds": 1}, {"k": 1}, {"steps": 1}]


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("accept", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_degenerate_runs_give_a_page_without_nan(tmp_path: Path, accept: float, shape: dict[str, int]) -> None:
    runs = [write_run(tmp_path / name, accept=accept, draft=name, **shape) for name in ("a", "b")]
    source = build.render(build.gather(runs))
    assert not re.search(r"\b(nan|inf|None)\b", assert_sound(source).text)


@pytest.mark.usefixtures("unpainted")
def test_runs_where_nothing_was_drafted_give_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    steps = run.steps.assign(drafted=0, accepted=0)
    turns = run.turns.assign(steps=0, undrafted_steps=run.turns["steps"], drafted=0, accepted=0)
    nothing = replace(run, steps=steps, turns=turns)
    assert said([nothing], "Nothing was measured on demo") == "bad"
    assert "n/a" in assert_sound(build.render(build.gather([nothing]))).text
    (run.directory / "outputs.jsonl").unlink()
    empty = replace(run, steps=run.steps.iloc[:0], turns=run.turns.iloc[:0])
    assert "There is no conversation in the run yet" in assert_sound(build.render(build.gather([empty]))).text


def verified(run: StoredRun, **settings: Any) -> dict[str, Any]:
    return {
        "verdict": "exact", "line": "exact: none of 38 tests failed", "reference": "exact probabilities", "missing": [],
        "settings": run.meta.spec.model_dump(mode="json") | {"samples": 20000} | settings,
        "engine": run.meta.fingerprint.engine.model_dump(),
        "checks": [{"kind": "tokens", "where": "draft 1", "n": 9, "p": 0.5, "detectable": 0.1},
                   {"kind": "tokens", "where": "bonus", "n": 0}],
    }  # fmt: skip


def test_a_verification_is_found_only_for_its_own_models_sampling_and_engine(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    root = tmp_path / "verify"
    for name, content in (
        ("other", verified(run, temperature=0.5)),
        ("missing", verified(run) | {"missing": ["cpu-expand"]}),
        ("damaged", "{"),
    ):
        (root / name).mkdir(parents=True)
        (root / name / "verify.json").write_text(json.dumps(content) if content != "{" else "{")
    assert verification.find(run, root) is None
    (root / "right").mkdir()
    (root / "right" / "verify.json").write_text(json.dumps(verified(run)))
    path, found = verification.find(run, root) or (None, {})
    assert path == root / "right" / "verify.json" and found["verdict"] == "exact"


@pytest.mark.usefixtures("unpainted")
def test_a_named_verification_is_shown_with_what_does_not_fit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file = tmp_path / "verify.json"
    file.write_text(json.dumps(verified(run)))
    assert said([run], "Engine verified: exact: none of 38 tests failed", verify_file=file) == "good"
    file.write_text(json.dumps(verified(run) | {"verdict": "biased", "line": "biased: 3 tests failed"}))
    assert said([run], "biased: 3 tests failed", verify_file=file) == "bad"
    file.write_text(json.dumps(verified(run, k=9)))
    assert (
        said([run], "The verification is of another engine or request: k: run 3, verified 9", verify_file=file)
        == "look"
    )


@pytest.mark.parametrize("content", ["", "[]", '{"verdict": "exact"}'])
def test_a_file_that_is_no_verification_is_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "verify.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"verify\.json: not "):
        verification.read(file)
    with pytest.raises(UserError, match="no such file"):
        verification.read(tmp_path / "none.json")


@pytest.mark.usefixtures("unpainted")
def test_the_command_writes_the_page_whole_or_not_at_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    out = tmp_path / "deep" / "page.html"
    result = CliRunner().invoke(app, ["report", str(run.directory), "-o", str(out)])
    assert result.exit_code == 0 and result.stderr.startswith(f"wrote {out} (")
    assert out.read_text(encoding="utf-8").endswith("</html>\n")
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    result = CliRunner().invoke(app, ["report", str(run.directory), "-o", str(tmp_path)])
    assert isinstance(result.exception, UserError) and "name the page" in str(result.exception)
