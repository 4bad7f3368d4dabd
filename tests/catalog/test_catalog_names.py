"""Names -> checkpoints: what users type, and the one line they get when it is wrong."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from speceval import catalog
from speceval.catalog.schema import TARGETS_DIR, _load_entry, load_entries
from speceval.errors import UserError

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published" / "lk_losses.csv"


def published() -> list[dict[str, str]]:
    """Rows of the paper's tables."""
    with PUBLISHED.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_gpt_oss_120b_lk_eagle3_is_the_pair_of_the_paper() -> None:
    pair = catalog.resolve("gpt-oss-120b", "lk-eagle3")
    assert pair.target.model == "openai/gpt-oss-120b"
    assert pair.target.answer_marker == "<|channel|>final<|message|>"
    assert pair.draft is not None
    assert (pair.draft.model, pair.draft.method, pair.draft.default_k) == ("nebius/EAGLE3-gpt-oss-120b", "eagle3", 7)


@pytest.mark.parametrize("typed", ["llama-3.1-8b", "LLAMA-3.1-8B-INSTRUCT", "meta-llama/llama-3.1-8b-instruct"])
def test_alias_and_hub_id_in_any_case_name_the_same_target(typed: str) -> None:
    assert catalog.resolve(typed, None).target.name == "Llama-3.1-8B-Instruct"


def test_no_two_targets_and_no_two_drafters_of_a_target_share_a_name() -> None:
    """Names and aliases are looked up in any case, the first one wins: a second one would never be reached."""
    targets = [{name.lower() for name in (e.name, e.model, *e.aliases)} for e in load_entries().values()]
    assert len(set.union(*targets)) == sum(map(len, targets))
    for entry in load_entries().values():
        drafters = [{name.lower() for name in (own, d.model, *d.aliases)} for own, d in entry.drafters.items()]
        assert sum(map(len, drafters)) == len(set().union(*drafters)), entry.name


def test_no_catalog_file_names_a_drafter_twice() -> None:
    """YAML keeps the last of two equal keys."""
    for path in TARGETS_DIR.glob("*.yaml"):
        names = re.findall(r"^  (\S+):$", path.read_text().partition("drafters:")[2], re.MULTILINE)
        assert len(names) == len(set(names)) == len(_load_entry(path).drafters), path


@pytest.mark.parametrize(("draft", "k"), [("lk-medusa", 6), ("lk-mlp", 6), ("rh-8b", 7), ("YH-8B", 7), ("zk-8b", 7)])
def test_llama_drafters_have_the_papers_k(draft: str, k: int) -> None:
    found = catalog.resolve("llama-3.1-8b", draft).draft
    assert found is not None and found.default_k == k


def test_every_catalog_drafter_is_a_row_of_the_paper() -> None:
    rows = {(row["target"], row["setup"], row["K"]): row["checkpoint"] for row in published()}
    for entry in load_entries().values():
        for name, drafter in entry.drafters.items():
            if drafter.source == "stored":
                assert drafter.paper_setup is None, f"{entry.name} {name}: trained here, so not the paper's"
                continue
            checkpoint = rows.get((entry.name, drafter.paper_setup or "", str(drafter.k)))
            assert checkpoint is not None, f"{entry.name} {name}: no such row"
            if checkpoint.startswith("HF "):
                assert checkpoint.split()[1] == drafter.model


def test_every_public_checkpoint_of_the_paper_is_in_the_catalog() -> None:
    known = {drafter.model for entry in load_entries().values() for drafter in entry.drafters.values()}
    named = {row["checkpoint"].split()[1] for row in published() if row["checkpoint"].startswith("HF ")}
    assert named and named <= known
    assert {row["target"] for row in published()} <= set(load_entries())


def test_unconfirmed_ids_are_marked_in_the_listing() -> None:
    notes = {row["model"]: row["note"] for row in catalog.listing("drafters")}
    assert "not confirmed" in notes["nebius/EAGLE3-Llama-3.1-8B-Instruct"]
    assert "not confirmed" not in notes["nebius/EAGLE3-gpt-oss-120b"]


@pytest.mark.parametrize(
    ("target", "draft", "parts"),
    [
        ("gptoss120", None, ["unknown target 'gptoss120'", "did you mean gptoss-120b"]),
        ("llama-3.1-8b", "lk-eagl3", ["unknown drafter", "did you mean lk-eagle3", "redhat-eagle3", "ngram"]),
        ("gpt-oss-120b", "redhat-eagle3", ["belongs to gpt-oss-20b", "not to target 'gpt-oss-120b'"]),
        ("gpt-oss-20b", "nebius/EAGLE3-gpt-oss-120b", ["belongs to gpt-oss-120b"]),
        ("llama-3.1-8b", "mtp", ["no MTP layers"]),
        ("./nowhere", None, ["no such directory"]),
        ("zoo@main", None, ["no revisions"]),
    ],
)
def test_wrong_names_get_one_line_that_helps(target: str, draft: str | None, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        catalog.resolve(target, draft)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("method", ["ngram", "suffix"])
def test_ngram_and_suffix_need_no_checkpoint(method: str) -> None:
    draft = catalog.resolve("llama-3.1-8b", method).draft
    assert draft is not None and draft.model is None and draft.method == method


def test_mtp_is_the_targets_own_checkpoint() -> None:
    draft = catalog.resolve("deepseek-v3", "mtp").draft
    assert draft is not None and (draft.model, draft.method) == ("deepseek-ai/DeepSeek-V3-0324", "mtp")


def test_a_revision_after_at_reaches_target_and_drafter_and_shows_in_their_names() -> None:
    pair = catalog.resolve("openai/gpt-oss-20b@abc", "redhat-eagle3@old")
    assert (pair.target.name, pair.target.model, pair.target.revision) == (
        "gpt-oss-20b@abc",
        "openai/gpt-oss-20b",
        "abc",
    )
    assert pair.draft is not None and (pair.draft.name, pair.draft.revision) == ("redhat-eagle3@old", "old")


def test_k_beyond_the_heads_is_refused() -> None:
    draft = catalog.resolve("llama-3.1-8b", "lk-medusa").draft
    assert draft is not None
    catalog.check_k(draft, 6)
    with pytest.raises(UserError, match="at most K=6"):
        catalog.check_k(draft, 7)
    with pytest.raises(UserError, match="at least 1"):
        catalog.check_k(draft, 0)


def test_zoo_drafters_come_from_the_zoo_and_are_not_built_by_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    from speceval import zoo

    monkeypatch.setattr(zoo, "ensure", lambda names: pytest.fail("resolve built the zoo"))
    draft = catalog.resolve("zoo", "lk-eagle3").draft
    assert draft is not None and (draft.source, draft.method) == ("zoo", zoo.DRAFTERS["lk-eagle3"])


def test_importing_and_resolving_loads_no_heavy_library_and_asks_no_network() -> None:
    code = (
        "import sys, socket; socket.socket = None\n"
        "from speceval import catalog; catalog.resolve('gpt-oss-120b', 'lk-eagle3')\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
