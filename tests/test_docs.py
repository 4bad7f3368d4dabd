"""Numbers, links and paths in README and docs are those of the stored results and of the tree."""

import importlib.util
import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
from support.printed import difference

ROOT = Path(__file__).resolve().parent.parent
SHELVES = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "results" / "README.md", *sorted(SHELVES.glob("**/*.md"))]
SOURCES = [
    path for top in ("speceval", "vllm_patches", "scripts", "tests", "notebooks") for path in (ROOT / top).rglob("*.py")
]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs_numbers() -> ModuleType:
    return script("docs_numbers")


@pytest.mark.slow
def test_every_table_is_what_the_stored_runs_give(docs_numbers) -> None:
    for page, contents in docs_numbers.blocks().items():
        text = page.read_text()
        stale = difference(text, docs_numbers.replace_blocks(text, contents))
        assert stale is None, f"run scripts/docs_numbers.py: {page.name}: {stale}"


@pytest.mark.slow
def test_a_stale_table_is_seen(docs_numbers) -> None:
    page, contents = next(iter(docs_numbers.blocks().items()))
    text = page.read_text().replace("± 0.", "± 1.", 1)
    assert difference(text, docs_numbers.replace_blocks(text, contents)) is not None


def test_the_power_that_the_docs_say_was_measured_is_what_was_measured() -> None:
    import pandas as pd

    rows = pd.read_csv(ROOT / "results" / "statistics" / "coverage.csv")
    power = 100 * rows.loc[rows["estimator"] == "could have seen", "coverage"]
    said = f"promises a power of 80 %: {power.min():.0f} to {power.max():.0f} % was measured"
    assert said in (SHELVES / "trust" / "how-sure.md").read_text().replace("\n", " ")


def test_the_books_of_every_reference_run_balance(docs_numbers) -> None:
    from speceval.estimate.identities import check_counters, reconcile

    for run in docs_numbers.demo_runs().values():
        assert run.meta.status == "complete"
        assert reconcile(run.steps, run.turns) == []
        assert check_counters(run.steps, asdict(run.meta.segments[0].counters)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_that_the_code_names_is_there() -> None:
    named = {
        (source, page)
        for source in [*SOURCES, ROOT / "results" / "README.md", ROOT / "results" / "published" / "source.yaml"]
        for page in re.findall(r"docs/[\w/.-]+\.(?:md|png)", source.read_text())
    }
    assert len(named) > 30
    assert [f"{source.relative_to(ROOT)}: {page}" for source, page in named if not (ROOT / page).exists()] == []


def test_every_report_to_vllm_is_named_by_the_defect_that_it_reports() -> None:
    from vllm_patches import unpatched
    from vllm_patches.ledger import LEDGER

    named = {link for row in (*LEDGER, *unpatched.ROWS) for link in row.upstream}
    pages = (SHELVES / "upstream").glob("*.md")
    reports = {str(path.relative_to(ROOT)) for path in pages if not path.name.startswith("llamacpp")}
    assert reports and reports <= named


def test_the_readme_fits_a_few_screens_and_keeps_its_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert len(re.findall(r"!\[", text)) == 1
