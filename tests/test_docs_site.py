"""The site: what is read from the code is complete, and what is written by hand names what there is."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
import yaml
from test_docs import ROOT, SHELVES, script

from speceval import cli
from speceval.commands import options
from speceval.protocol import RunSpec
from speceval.store.schema import Fingerprint, RunMeta
from speceval.suites import load


@pytest.fixture(scope="module")
def docs_site() -> ModuleType:
    return script("docs_site")


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    found: Any = typer.main.get_command(cli.app)
    return dict(found.commands)


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a navigation of mkdocs."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(item)


def test_every_page_is_on_one_shelf_once(docs_site: ModuleType) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    written = [str(path.relative_to(SHELVES)) for path in SHELVES.glob("**/*.md")]
    assert sorted(leaves(nav)) == sorted([*written, *docs_site.AT_ROOT.values()])
    assert [name for entry in nav[1:] for name in entry] == ["Start", "Measure and decide", "Trust", "Build"]


def test_every_page_is_named_by_a_question() -> None:
    pages = [path for path in SHELVES.glob("*/*.md") if path.parent.name != "upstream"]
    titles = {path: path.read_text().splitlines()[0] for path in pages}
    assert len(titles) > 25
    assert [path for path, title in titles.items() if not re.fullmatch(r"# .+\?", title)] == []


def test_the_reference_has_every_option_of_every_command(docs_site: ModuleType, commands: dict[str, Any]) -> None:
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", docs_site.commands(), re.MULTILINE | re.DOTALL))
    assert sections.keys() == set(commands) == set(cli.COMMANDS)
    for name, command in commands.items():
        flags = [flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
        flags = [flag for flag in flags if flag.startswith("-") and flag != "--help"]
        assert [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", sections[name])] == []


def test_a_new_flag_is_in_the_reference_without_further_work(
    docs_site: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer(rich_markup_mode=None)

    @app.command("probe", cls=options.Command)
    def probe(level: Annotated[int, typer.Option(help="How much | how often.")] = 3) -> None:
        """Probe."""

    @app.command("other", cls=options.Command)
    def other(
        as_json: options.AsJson = False, kind: Annotated[str, typer.Option(help="Which [default: all].")] = ""
    ) -> None:
        """Other."""

    monkeypatch.setattr(docs_site, "app", app)
    page = docs_site.commands()
    assert "| `--level`{: .flag } `int` | How much \\| how often. | `3` |" in page
    assert "| `--kind`{: .flag } `str` | Which. | `all` |" in page
    assert "## probe\n\nProbe." in page


def test_what_an_option_takes_is_said_in_words_of_the_command_line(docs_site: ModuleType) -> None:
    assert (
        docs_site._row("--part, -p <list[Path]>", "Which.")
        == "| `--part`{: .flag } `-p`{: .flag } `path` | Which. |  |"
    )
    assert docs_site._row("--on / --no-on", "How. [default: no-on]").endswith("| How. | off |")
    assert docs_site._row("--on / --no-on", "How. [default: on]").endswith("| How. | on |")
    assert docs_site._row("--kind <a|b>", "[default: the other]") == "| `--kind`{: .flag } `a` `b` |  | the other |"
    rows = [line for line in docs_site.commands().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if re.search(r"list\[|`no-|\| \. \||[dD]efault: ", row)] == []


def test_neither_the_terminal_nor_the_machine_is_in_the_reference(
    docs_site: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = docs_site.commands()
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERMINAL_WIDTH", "30")
    assert docs_site.commands() == wide
    for place in (str(ROOT), str(Path.home()), sys.prefix, str(Path.cwd())):
        assert place not in wide


def test_the_record_s_page_has_every_field_with_its_meaning(docs_site: ModuleType) -> None:
    page = docs_site.record()
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL))
    for title, model in (("run.json", RunMeta), ("Fingerprint", Fingerprint), ("RunSpec", RunSpec)):
        rows = re.findall(r"^\| `(\w+)` \| .+ \| `.+` \|$", sections[title], re.MULTILINE)
        assert rows == list(model.model_fields)
    assert (
        "| `temperature` | `--temp`: Temperature of the target, and of sampled drafts. | `float` |"
        in sections["RunSpec"]
    )


def test_blocks_are_filled_where_they_stand_and_nowhere_else(docs_site: ModuleType) -> None:
    for name in ("start/commands.md", "build/record.md"):
        text = (SHELVES / name).read_text()
        filled = docs_site.on_page_markdown(text)
        assert len(filled) > len(text) + 2000 and "<!-- /" not in filled
    text = (SHELVES / "trust" / "how-sure.md").read_text()
    assert docs_site.on_page_markdown(text) == text


def test_links_of_a_file_at_the_root_lead_to_the_same_pages_on_the_site(docs_site: ModuleType) -> None:
    text = "[a](docs/start/install.md#on-a-gpu) ![b](docs/images/forest.png) [c](README.md) [d](LICENSE) [e](https://f.org/docs/start/install.md)"
    assert docs_site.as_page(text, "build/changelog.md") == (
        "[a](../start/install.md#on-a-gpu) ![b](../images/forest.png) [c](../index.md) d [e](https://f.org/docs/start/install.md)"
    )
    assert docs_site.as_page("[a](docs/start/install.md)", "index.md") == "[a](start/install.md)"


def test_the_table_of_exit_codes_names_every_command(commands: dict[str, Any]) -> None:
    rows = re.findall(r"^\| (`.*?`) \|", (SHELVES / "start" / "exit-codes.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z]+)`", row)}
    assert set(commands) <= named


def test_every_line_that_troubleshooting_quotes_is_one_that_the_code_prints() -> None:
    """Parts between "…", which stand for what differs, must each be in a string of the code."""
    sources = [
        *(ROOT / "speceval").rglob("*.py"),
        *(ROOT / "vllm_patches").rglob("*.py"),
        ROOT / "scripts" / "setup_env.py",
    ]
    texts = [text for source in sources for text in strings(ast.parse(source.read_text()))]
    page = (SHELVES / "start" / "troubleshooting.md").read_text().partition("## Numbers that surprise")[0]
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    quoted = [line for cell in cells for line in re.findall(r"`([^`]+)`", cell)]
    parts = [part.strip(" :;,()") for line in quoted for part in line.split("…")]
    assert len(quoted) > 40
    assert [part for part in parts if not any(part in text for text in texts)] == []


def strings(tree: ast.AST) -> Iterator[str]:
    """The strings of a source, those that stand between a formatted string's values among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace("`", "")


def test_the_suite_page_s_example_can_be_pinned_and_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```", (SHELVES / "build" / "add-a-suite.md").read_text(), re.MULTILINE | re.DOTALL
    )
    rows, suite, code, _ = (text for _, text in blocks)
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(rows)
    Path("mine.yaml").write_text(suite)
    printed: list[str] = []
    exec(compile(code, "page", "exec"), {"print": printed.append})
    Path("mine.yaml").write_text(f"{suite}pinned: {{rows: mine.rows, dataset_hash: {printed[0]}}}\n")
    assert [len(conversation.turns) for conversation in load("mine.yaml").conversations] == [2, 1]
    Path("mine.jsonl").write_text(rows.replace("First", "Another"))
    with pytest.raises(Exception, match="row 1, field 'turns' differs"):
        load("mine.yaml")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == importlib.metadata.version("speceval")
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {citation['version']}\n" in changes


def test_every_issue_form_asks_for_something_and_ci_runs_what_a_checkout_runs() -> None:
    forms = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))]
    assert len(forms) == 3
    for form in forms:
        assert form["name"] and form["description"]
        assert any(field.get("validations", {}).get("required") for field in form["body"])
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]
    assert ".ci/run" in [step.get("run") for job in jobs.values() for step in job["steps"]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return SimpleNamespace(site=site, code=done.returncode, said=done.stdout + done.stderr)


def test_the_site_builds_without_a_warning(built: SimpleNamespace) -> None:
    assert (built.code, "WARNING" in built.said) == (0, False), built.said


def test_the_site_loads_nothing_from_elsewhere_and_shows_no_markup(built: SimpleNamespace) -> None:
    pages = list(built.site.rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        text = page.read_text()
        assert "```" not in text, f"{page.name}: a block of code in a list"
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"([^\"]+)\"", text)
        assert [place for place in loaded if re.match(r"(https?:)?//", place)] == [], page.name
    for style in built.site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text()) == [], style.name


def test_the_built_reference_and_search_have_the_flags(built: SimpleNamespace) -> None:
    assert "--draft-truncation" in (built.site / "start" / "commands.html").read_text()
    index = json.loads((built.site / "search" / "search_index.json").read_text())
    assert any("--draft-truncation" in entry["text"] for entry in index["docs"])
