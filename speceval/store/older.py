"""How what earlier versions stored becomes what this one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

METHOD_PATCHES = ("v1-medusa", "cpu-rotary")
"""Patches of stored runs that only some drafting methods needed, of the time before runs said so themselves."""


def migrate(content: dict[str, Any]) -> dict[str, Any]:
    """run.json's content of an older schema as this version writes it, without `schema`; the given one is left alone.

    2: prefills that vLLM padded are counted beside (`padded_steps`; `migrate_turns`), q is truncated as p is.
    3: r and alpha of every draft may be recorded. What no run could ask for then has its default, or is None.
    Of any: `own_method`, `bound_patches`; the evidence stood beside the fingerprint.
    """
    content = dict(content)
    if (told := content.pop("evidence", None)) is not None and isinstance(content.get("fingerprint"), dict):
        content["fingerprint"] = {"evidence": told} | content["fingerprint"]
    if content.pop("schema") < 3:
        content["spec"] = {"record": False} | content["spec"]
        content["fingerprint"] = migrate_fingerprint(content["fingerprint"])
    return content | {"fingerprint": bound_patches(own_method(content["fingerprint"]))}


def migrate_fingerprint(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint of an older schema as this version writes it."""
    engine = fingerprint.get("engine")
    told = {"engine": {"draft_truncation": True} | engine} if isinstance(engine, dict) else {}
    return bound_patches(own_method({"replay": None} | fingerprint | told))


def bound_patches(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A stored fingerprint that says which of its patches only some drafting methods need."""
    active = fingerprint.get("patches")
    if not isinstance(active, list):
        return fingerprint
    return {"method_patches": [name for name in active if name in METHOD_PATCHES]} | fingerprint


def own_method(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A stored fingerprint with the drafter's own method, where it has the name by which vLLM takes a class of ours.

    That was an MLP speculator before vLLM 0.33, and from 0.33 on also MEDUSA: there the drafter's names decide, and
    "heads" says that they do not.
    """
    engine, draft = fingerprint.get("engine"), fingerprint.get("draft")
    if not isinstance(engine, dict) or not isinstance(draft, dict) or engine.get("method") != "custom_class":
        return fingerprint
    names = f"{draft.get('name')} {draft.get('model')}".lower()
    release = tuple(int(part) for part in str(engine.get("vllm", "0.32")).split(".")[:2])
    method = "medusa" if "medusa" in names else "heads"
    if release < (0, 33) or "mlp" in names:
        method = "mlp_speculator"
    return {**fingerprint, "engine": {**engine, "method": method}}


def migrate_turns(turns: pd.DataFrame) -> pd.DataFrame:
    """The turn table of an older schema with the columns of this one."""
    return turns if "padded_steps" in turns else turns.assign(padded_steps=0)
