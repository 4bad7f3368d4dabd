"""The ledger is complete, and docs/patches.md shows it as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from packaging.specifiers import SpecifierSet

from vllm_patches import unpatched
from vllm_patches.ledger import LEDGER, table

ROOT = Path(__file__).parents[2]


def test_ids_and_targets_are_unique() -> None:
    ids = [row.id for row in (*LEDGER, *unpatched.ROWS)]
    assert len(set(ids)) == len(ids)
    assert len({row.target for row in LEDGER}) == len(LEDGER)


def test_every_row_names_a_test_a_replacement_and_an_upstream_link_or_our_report() -> None:
    assert all(importlib.util.find_spec(row.replacement) is not None for row in LEDGER)
    for row in (*LEDGER, *unpatched.ROWS):
        assert (ROOT / row.tested_by).is_file(), row.id
        assert row.upstream
        for link in row.upstream:
            assert link.startswith("https://github.com/vllm-project/vllm/") or (ROOT / link).is_file(), link


def test_every_version_with_a_known_source_is_in_the_row_s_range() -> None:
    for row in LEDGER:
        assert row.sources
        assert all(SpecifierSet(row.versions).contains(version) for version in row.sources)
        assert not any(SpecifierSet(row.native).contains(version) for version in row.sources if row.native)


def test_a_row_without_a_patch_is_in_one_of_three_states() -> None:
    assert {row.state for row in unpatched.ROWS} == {"refused", "accounted for", "native"}


def test_the_page_shows_the_ledger() -> None:
    page = (ROOT / "docs" / "patches.md").read_text()
    assert table() in page
    assert unpatched.table() in page


def test_every_report_of_ours_is_named_by_a_row() -> None:
    named = {ROOT / link for row in (*LEDGER, *unpatched.ROWS) for link in row.upstream if link.startswith("docs/")}
    assert named == set((ROOT / "docs" / "upstream").glob("*.md"))
