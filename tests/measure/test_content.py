"""A run is what it was made of, not what that was called: changed content under the same command is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.records import run_meta

from speceval import catalog, cli
from speceval.engines.simulated import SimulatedEngine
from speceval.measure import digests, launch
from speceval.measure.job import Job
from speceval.measure.weights import config_hash, template_hash, tokenizer_hash, weights_hash
from speceval.store.schema import differ, differences

TARGET = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "vocab_size": 16,
    "num_hidden_layers": 4,
}  # fmt: skip
DRAFT = TARGET | {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "rope_theta": 10000.0}
TOKENIZER = {"tokenizer_class": "T", "eos_token": "</s>", "chat_template": "{{ messages }}"}


def put(path: str | Path, content: Any) -> None:
    """Write a file so that its time of change is another one and lies behind."""
    text = content if isinstance(content, str) else json.dumps(content)
    Path(path).write_text(text)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A target, a drafter and a suite, all in files that may change."""
    monkeypatch.setenv("SPECEVAL_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    for name in ("target", "draft"):
        (work / name).mkdir(parents=True)
    monkeypatch.chdir(work)
    put("target/config.json", TARGET)
    put("target/model.safetensors", "weights of the target")
    put("target/tokenizer.json", {"model": {"vocab": {"a": 1}}})
    put("target/tokenizer_config.json", TOKENIZER)
    put("target/generation_config.json", {"eos_token_id": 1})
    put("draft/config.json", DRAFT)
    put("draft/model.safetensors", "weights of the drafter")
    put("rows.jsonl", "".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(3)))
    put("own.yaml", "name: own\nversion: 1\ndata: {file: rows.jsonl}\nmax_tokens: 40\n")
    return work


class Loading(SimulatedEngine):
    """One that says that it loads the checkpoints."""

    loads_checkpoints = True


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    started: list[Job] = []

    def start(job: Job) -> Loading:
        started.append(job)
        return Loading((0.7,) * job.spec.k, batch=job.spec.batch)

    monkeypatch.setattr(launch, "start_engine", start)
    monkeypatch.setattr(catalog, "fetch", lambda pair: pair)

    def call(*more: str) -> tuple[int, str, str, int]:
        """Exit code, stdout, stderr, and how often an engine has been started."""
        asked = ("run", "--target", "./target", "--draft", "./draft", "--temp", "1", "--k", "3", "--suite", "own.yaml")
        monkeypatch.setattr(sys, "argv", ["speceval", *asked, *more])
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capfd.readouterr()
        return code, out, err, len(started)

    return call


CHANGES: dict[str, tuple[Callable[[], None], str]] = {
    "weights of the drafter": (lambda: put("draft/model.safetensors", "weights of another"), "draft.weights"),
    "of the same size": (lambda: put("draft/model.safetensors", "weights of the drafteR"), "draft.weights"),
    "weights of the target": (lambda: put("target/model.safetensors", "others"), "target.weights"),
    "one more file of weights": (lambda: put("draft/pytorch_model.bin", "more"), "draft.weights"),
    "the drafter's configuration": (lambda: put("draft/config.json", DRAFT | {"rope_theta": 5e5}), "draft.config"),
    "the target's": (lambda: put("target/config.json", TARGET | {"rope_scaling": {"factor": 2}}), "target.config"),
    "end tokens": (lambda: put("target/generation_config.json", {"eos_token_id": [1, 5]}), "target.config"),
    "code": (lambda: put("target/modeling_own.py", "x = 1"), "target.config"),
    "tokenizer": (lambda: put("target/tokenizer.json", {"model": {"vocab": {"a": 2}}}), "target.tokenizer"),
    "its settings": (lambda: put("target/tokenizer_config.json", TOKENIZER | {"eos_token": "<e>"}), "target.tokenizer"),
    "chat template": (
        lambda: put("target/tokenizer_config.json", TOKENIZER | {"chat_template": "{{ messages[0] }}"}),
        "target.chat_template",
    ),
    "chat template in a file": (lambda: put("target/chat_template.jinja", "x"), "target.chat_template"),
    "a row": (lambda: put("rows.jsonl", '{"prompt": "one"}\n{"prompt": "two"}\n'), "suites.own.dataset"),
    "a row's system prompt": (
        lambda: put("rows.jsonl", Path("rows.jsonl").read_text().replace('n 0"', 'n 0", "system": "s"')),
        "suites.own.dataset",
    ),
    "the suite's template": (
        lambda: put("own.yaml", Path("own.yaml").read_text() + 'template: "Say {prompt}"\n'),
        "suites.own.form",
    ),
    "the suite's system prompt": (
        lambda: put("own.yaml", Path("own.yaml").read_text() + "system: Be brief.\n"),
        "suites.own.form",
    ),
    "the suite's max_tokens": (
        lambda: put("own.yaml", Path("own.yaml").read_text().replace("40", "41")),
        "suites.own.max_tokens: 40 -> 41",
    ),
}


@pytest.mark.parametrize("out", [(), ("--out", "out")], ids=["results", "out"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_run_is_not_printed_again_when_its_content_has_changed(
    run: Callable[..., Any], change: str, out: tuple[str, ...]
) -> None:
    assert run(*out)[0] == 0
    alter, field = CHANGES[change]
    alter()
    code, printed, said, started = run(*out)
    assert (code, printed, started) == (cli.EXIT_BAD_INPUT, "", 1)
    assert "holds a finished run, and what it was made of has changed since" in said and field in said
    assert "nothing was measured: name another --out" in said and said.count("\n") == 1
    assert run("--out", "another")[0] == 0


def test_what_has_not_changed_is_printed_again_and_says_so(run: Callable[..., Any]) -> None:
    _, first, _, _ = run()
    put("draft/README.md", "remarks")
    put("draft/config.json", json.dumps(DRAFT | {"transformers_version": "9"}, indent=8, sort_keys=True))
    os.utime("draft/model.safetensors")
    put("rows.jsonl", Path("rows.jsonl").read_text().replace('": "', '":    "') + "\n\n")
    code, again, said, started = run()
    assert (code, again, started) == (0, first, 1)
    assert said.startswith("finished before: nothing was measured now")


@pytest.mark.parametrize("change", ["weights of the drafter", "the drafter's configuration", "a row", "chat template"])
def test_an_unfinished_run_is_not_resumed_with_other_content(
    run: Callable[..., Any], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SimulatedEngine, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("--out", "out")[0] == cli.EXIT_INTERRUPTED
    alter, field = CHANGES[change]
    alter()
    code, _, said, started = run("--out", "out")
    assert (code, started) == (cli.EXIT_BAD_INPUT, 1) and "cannot resume" in said and field in said


def test_hashes_that_an_earlier_version_did_not_take_are_unknown_and_not_another_value() -> None:
    now = {"target__config": "c", "target__tokenizer": "t", "draft__config": "d", "suites__demo__form": "f"}
    old = run_meta().fingerprint
    new = run_meta(**{f"fingerprint__{name}": value for name, value in now.items()}).fingerprint
    assert differences(old, new) == []
    other = new.model_copy(update={"target": new.target.model_copy(update={"tokenizer": "u"})})
    assert differences(new, other) == ["target.tokenizer: t -> u"]
    assert differ("draft.weights", "absent", "a1")  # taken ever since


# ---------------------------------------------------------------------------------------------------- hashes


def test_a_hub_snapshot_is_read_where_the_cache_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert (weights_hash("a/b"), config_hash("a/b"), template_hash("a/b")) == ("commit:unknown", None, None)
    folder = tmp_path / "models--a--b"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    put(folder / "refs" / "main", "abc")
    put(folder / "snapshots" / "abc" / "config.json", TARGET)
    assert weights_hash("a/b") == "commit:abc" and config_hash("a/b") == config_hash("a/b", "abc") is not None


def test_the_chat_template_counts_once_and_apart_from_the_tokenizer(place: Path) -> None:
    before = tokenizer_hash("target"), template_hash("target")
    put("target/tokenizer_config.json", TOKENIZER | {"chat_template": "other"})
    assert tokenizer_hash("target") == before[0] and template_hash("target") != before[1]


def test_a_file_is_read_once_until_it_changes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    reads: list[Path] = []
    original = digests._content
    monkeypatch.setattr(digests, "_content", lambda path: reads.append(path) or original(path))
    first = weights_hash("draft")
    assert weights_hash("draft") == first and len(reads) == 1
    put("draft/model.safetensors", "weights of the drafteR")
    os.utime("draft/model.safetensors", ns=(1, 1))  # even where the time of writing is put back, as cp -p does
    assert weights_hash("draft") != first and len(reads) == 2
    put("draft/model.safetensors", "weights of the drafter")
    assert weights_hash("draft") == first


def test_a_file_that_has_just_changed_is_not_remembered(place: Path) -> None:
    weights_hash("draft")
    assert not list(digests.cache_root().glob("digests/*"))


def test_a_cache_that_cannot_be_written_or_is_damaged_only_costs_time(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    first = weights_hash("draft")
    for file in digests.cache_root().glob("digests/*"):
        file.write_bytes(b"\xff\x00")
    assert weights_hash("draft") == first
    put(tmp_path / "file", "no directory")
    monkeypatch.setenv("SPECEVAL_CACHE", str(tmp_path / "file" / "cache"))
    assert weights_hash("draft") == first
