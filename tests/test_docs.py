"""Numbers and links in README and docs are those of the stored results and of the tree."""

import importlib.util
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from printed import difference

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.fixture(scope="module")
def docs_numbers():
    spec = importlib.util.spec_from_file_location("docs_numbers", ROOT / "scripts" / "docs_numbers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_what_the_stored_runs_give(docs_numbers) -> None:
    for page, contents in docs_numbers.blocks().items():
        text = page.read_text()
        stale = difference(text, docs_numbers.replace_blocks(text, contents))
        assert stale is None, f"run scripts/docs_numbers.py: {page.name}: {stale}"


def test_a_stale_table_is_seen(docs_numbers) -> None:
    page, contents = next(iter(docs_numbers.blocks().items()))
    text = page.read_text().replace("± 0.", "± 1.", 1)
    assert difference(text, docs_numbers.replace_blocks(text, contents)) is not None


def test_the_books_of_every_reference_run_balance(docs_numbers) -> None:
    from speceval import acceptance

    for run in docs_numbers.demo_runs().values():
        assert run.meta.status == "complete"
        assert acceptance.reconcile(run.steps, run.turns) == []
        assert acceptance.check_counters(run.steps, asdict(run.meta.segments[0].counters)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
