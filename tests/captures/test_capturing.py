"""`speceval capture`: what it keeps, how it goes on, and what it and `replay` refuse in one line."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.tiny_engine import TinyEngine

import speceval
from speceval.captures import storage, write
from speceval.store import read_run

pytestmark = pytest.mark.slow


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_states_and_log_p_are_those_of_the_target_at_each_token(captured: Path) -> None:
    capture, target = speceval.read_capture(captured), tiny.load(Path("target"))
    assert len(capture.texts) == 4 and capture.manifest.layers == (1, 2, 3)
    for text in capture.texts:
        tokens = torch.tensor([text.tokens])
        streams, found = tiny._streams(target, tokens[:, :-1]), capture.states(text)
        torch.testing.assert_close(found["final"], tiny._target_hidden(target, streams)[0])
        torch.testing.assert_close(found["layer.2"], streams[2][0])
        law = tiny.target_forward(target, tokens)[0][0].log_softmax(-1)
        wanted = law[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        assert found["log_p"][: text.prompt - 1].isnan().all()
        torch.testing.assert_close(found["log_p"][text.prompt - 1 :], wanted[text.prompt - 1 :], atol=1e-5, rtol=0)


def test_it_says_how_large_it_will_be_before_it_starts(call, free) -> None:
    _, out, err = call("capture", free(), "-o", "cap", "--layers", "2", "--json")
    facts = json.loads(out)
    assert facts["schema"] == 1 and facts["texts"] == 4
    assert err.startswith("capture: 4 texts, ") and "last state and of layers 2, 64 float32s each: about" in err
    said = float(err.split("about ")[1].split(" kB")[0]) * 1000
    assert facts["bytes"] == sum(path.stat().st_size for path in Path("cap").glob("*.safetensors"))
    assert said == pytest.approx(facts["bytes"], rel=0.05)


def test_drafters_of_the_last_state_need_no_inner_layer(call, free) -> None:
    assert call("capture", free(), "-o", "cap", "--layers", "none")[0] == 0
    assert speceval.read_capture("cap").manifest.layers == ()
    assert call("replay", "cap", "--draft", "./medusa", "--k", "3", "--out", "again")[0] == 0
    code, _, err = call("replay", "cap", *EAGLE, "--out", "x")
    assert code == 4 and "reads layer 1, cap has none: capture again with --layers 1,2,3" in err


def test_an_interrupted_capture_goes_on_and_ends_the_same(call, free, monkeypatch: pytest.MonkeyPatch) -> None:
    run = free()
    monkeypatch.setattr(write, "SHARD_BYTES", 1)
    assert call("capture", run, "-o", "whole")[0] == 0
    monkeypatch.setattr(TinyEngine, "fails_after", 3)  # one to check the output map, two texts
    assert call("capture", run, "-o", "cap")[0] == 130
    lines = (Path("cap") / "texts.jsonl").read_bytes().splitlines()
    assert 0 < len(lines) < 3 and len(list(Path("whole").glob("states-*"))) == 3
    with (Path("cap") / "texts.jsonl").open(
        "ab"
    ) as file:  # what kills leave: a shard that no manifest names, a torn line
        file.write(json.dumps(json.loads(lines[0]) | {"shard": 7, "conversation": "lost"}).encode())
        file.write(b'\n{"suite": "torn')
    code, _, err = call("replay", "cap", "--draft", "ngram", "--k", "2", "--out", "x")
    assert code == 4 and "the capture is unfinished" in err
    monkeypatch.setattr(TinyEngine, "fails_after", None)
    assert call("capture", run, "-o", "cap")[0] == 0
    whole, resumed = (speceval.read_capture(name) for name in ("whole", "cap"))
    assert {text.key for text in whole.texts} == {text.key for text in resumed.texts}
    for text in whole.texts:
        [same] = [other for other in resumed.texts if other.key == text.key]
        for name, state in whole.states(text).items():
            assert resumed.states(same)[name].equal(state) or name == "log_p"
    before = tree(Path("cap"))
    assert call("capture", run, "-o", "cap")[0] == 0 and tree(Path("cap")) == before  # nothing to do


def test_fewer_bits_are_said_with_their_error(call, free) -> None:
    run = free()
    assert call("capture", run, "-o", "cap")[0] == 0
    code, out, err = call("capture", run, "-o", "half", "--dtype", "bfloat16")
    assert code == 0 and "stored as bfloat16: log p of a token moves by" in out, err
    whole, half = (speceval.read_capture(name) for name in ("cap", "half"))
    changes = []
    for text in whole.texts:
        a, b = whole.states(text), half.states(text)
        assert b["final"].dtype == torch.bfloat16
        rounded = b["final"].float() @ whole.output.T
        due = torch.tensor(text.tokens[text.prompt :])
        after = rounded.log_softmax(-1)[text.prompt - 1 :].gather(1, due[:, None])[:, 0]
        changes += (after - a["log_p"][text.prompt - 1 :]).abs().tolist()
    assert half.manifest.storage is not None and half.manifest.storage.tokens == len(changes)
    assert half.manifest.storage.mean == pytest.approx(np.mean(changes), rel=1e-3)
    assert half.manifest.storage.largest == pytest.approx(max(changes), rel=1e-3)


def test_eight_bits_cost_what_is_said_and_no_more_room(call, free) -> None:
    run = free()
    assert call("capture", run, "-o", "cap", "--layers", "1,2,3")[0] == 0
    code, out, err = call("capture", run, "-o", "small", "--layers", "1,2,3", "--float8")
    assert code == 0 and "stored as float8: log p of a token moves by" in out and "64 float8s each" in err
    whole, small = (speceval.read_capture(name) for name in ("cap", "small"))
    said = float(err.split("about ")[1].split(" kB")[0]) * 1000
    assert small.manifest.bytes == pytest.approx(said, rel=0.15)  # names of tensors are a part of so small a file
    for text in whole.texts:
        a, b = whole.states(text), small.states(text)
        assert a.keys() == b.keys() and a["log_p"][text.prompt - 1 :].equal(b["log_p"][text.prompt - 1 :])
        for name in ("final", "layer.1", "layer.2", "layer.3"):
            row = a[name].abs().amax(-1, keepdim=True)
            assert ((a[name] - b[name]).abs() <= a[name].abs() / 16 + row / 448 * 2**-9).all()  # half of the last bit
    for name in ("cap", "small"):
        assert call("replay", name, *EAGLE, "--out", f"on-{name}")[0] == 0
    kept = [read_run(Path(f"on-{name}")).steps[["kept_1", "kept_2", "kept_3"]].to_numpy() for name in ("cap", "small")]
    change = np.abs(kept[0] - kept[1])
    assert 0 < np.nanmean(change) < 0.02
    assert call("capture", run, "-o", "x", "--float8", "--dtype", "bfloat16")[0] == 4 and not Path("x").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32])
def test_the_rows_of_a_shard_lie_in_one_piece_of_memory_and_are_what_was_added(dtype: torch.dtype) -> None:
    texts = [torch.randn(rows, *size).to(dtype) for rows, size in ((3, (4,)), (1, (4,)), (2, (4,)))]
    before, kept = texts[1].clone(), write.Rows(texts[0])
    for text in texts:
        kept.append(text)
    texts[1].fill_(0)  # the caller's own may go, or change
    whole = kept.tensor()
    assert whole.is_contiguous() and whole.shape == (6, 4) and whole.dtype == dtype
    assert whole[3:4].float().equal(before.float()) and whole[4:].float().equal(texts[2].float())


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 3e38])
def test_eight_bits_hold_any_row(value: float) -> None:
    state = torch.tensor([[value, -value / 2, 0.0], [1.0, 2.0, -3.0]])
    back = storage.unpack(storage.pack("final", state, "float8"))["final"]
    torch.testing.assert_close(back, state, rtol=2**-4, atol=0)


def test_at_temperature_0_near_ties_are_counted(call, free) -> None:
    code, out, _ = call("capture", free("--temp", "0"), "-o", "cap", "--json")
    assert code == 0 and json.loads(out)["not_likeliest"] > 0  # the texts are letters of chance


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def edit(**fields: object) -> None:
    path = Path("cap/manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def retold(change: Callable[[list[str]], list[str]]) -> None:
    path = Path("cap/texts.jsonl")
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def turned(field: str, change: Callable[[Any], Any]) -> None:
    """Another value in the first turn of the first line."""

    def changed(lines: list[str]) -> list[str]:
        first = json.loads(lines[0])
        first["turns"][0][field] = change(first["turns"][0][field])
        return [json.dumps(first) + "\n", *lines[1:]]

    retold(changed)


def other_end(ids: list[int]) -> list[int]:
    """The same tokens but for the last one."""
    return [*ids[:-1], 1 - min(ids[-1], 1)]


def asked_otherwise(**sampling: float) -> None:
    """Other sampling parameters in all places of the manifest that name them."""
    run = json.loads(Path("cap/manifest.json").read_text())["run"]
    run["fingerprint"]["sampling"] |= sampling
    run["spec"] |= sampling
    edit(run=run)


def other_target() -> None:
    content = json.loads(Path("cap/manifest.json").read_text())
    content["run"]["fingerprint"]["target"]["weights"] = "sha256:0"
    Path("cap/manifest.json").write_text(json.dumps(content))


EAGLE = ("--draft", "./eagle3", "--method", "eagle3", "--k", "3")
NGRAM = ("--draft", "ngram", "--k", "3")


@pytest.mark.parametrize(
    ("damage", "arguments", "says"),
    [
        (lambda: None, ("nowhere", *EAGLE), "nowhere: no manifest.json: not a capture"),
        (lambda: None, ("free", *EAGLE), "free: no manifest.json: not a capture"),
        (lambda: shorten(Path("cap/states-00001.safetensors")), ("cap", *EAGLE), "states-00001.safetensors: has "),
        (lambda: Path("cap/states-00001.safetensors").unlink(), ("cap", *EAGLE), "00001.safetensors: is missing"),
        (lambda: shorten(Path("cap/head.safetensors")), ("cap", *EAGLE), "head.safetensors: has "),
        (lambda: shorten(Path("cap/texts.jsonl")), ("cap", *EAGLE), "texts.jsonl: line 3 is damaged"),
        (lambda: Path("cap/manifest.json").write_text("{"), ("cap", *EAGLE), "manifest.json: not JSON at line 1"),
        (lambda: edit(version=2), ("cap", *EAGLE), "version 2, this speceval reads 1: update speceval"),
        (lambda: edit(layers="x"), ("cap", *EAGLE), "field 'layers'"),
        (lambda: edit(layers=[1, 2, 3, 9]), ("cap", *EAGLE), "tensor layer.9 should be F32"),
        (lambda: edit(hidden_size=7), ("cap", *EAGLE), "tensor final should be F32"),
        (lambda: edit(hidden_size=10**15), ("cap", *EAGLE), "tensor final should be F32"),
        (lambda: edit(shards=[]), ("cap", *EAGLE), "has not the rows"),
        (lambda: edit(replay="x"), ("cap", *EAGLE), "not the texts that the manifest"),
        (lambda: edit(shards=[{"file": "../x", "bytes": 1, "rows": 1}]), ("cap", *EAGLE), "field 'shards.0.file'"),
        (lambda: Path("cap/texts.jsonl").unlink(), ("cap", *EAGLE), "0 rows, the shards have another number"),
        (lambda: retold(lambda lines: lines + lines), ("cap", *EAGLE), "has not the rows"),
        (lambda: retold(lambda lines: lines[:-1]), ("cap", *EAGLE), "rows, the shards have another number"),
        (lambda: turned("token_ids", other_end), ("cap", *EAGLE), "not the texts that the manifest"),
        (lambda: turned("token_ids", lambda _: []), ("cap", *EAGLE), "line 1 is damaged"),
        (lambda: turned("prompt", lambda ids: [10**30, *ids[1:]]), ("cap", *EAGLE), "tokens that its target has not"),
        (lambda: turned("first_row", lambda row: row + 1), ("cap", *EAGLE), "has not the rows"),
        (lambda: turned("first_row", lambda _: 10**9), ("cap", *EAGLE), "has not the rows"),
        (lambda: edit(layers=[1, 2]), ("cap", *EAGLE), "./eagle3: reads layer 3, cap has 1, 2: capture again with"),
        (lambda: asked_otherwise(temperature=0.7), ("cap", *EAGLE), "log p is not what states, output map"),
        (lambda: asked_otherwise(top_k=2), ("cap", *EAGLE), "log p is not what states, output map"),
        (lambda: shard(lambda t: {**t, "final": t["final"].flip(0)}), ("cap", *EAGLE), "log p is not what states, "),
        (lambda: shard(lambda t: {n: v.roll(1, 0) for n, v in t.items()}, "head"), ("cap", *EAGLE), "log p is not"),
        (other_target, ("cap", *EAGLE), "captured of a target with weights sha256:0, ./target has sha256:"),
        (lambda: tiny.write_medusa(Path("medusa"), tiny.write_target(Path("wide"), vocab=30)),
         ("cap", "--draft", "./medusa", "--k", "3"), "its vocab_size is 30, the target's vocab_size is 24"),
        (lambda: None, ("cap", "--draft", "./medusa", "--k", "4"), "drafts at most K=3"),
        (lambda: None, ("cap", *NGRAM, "--draft-arg", "prompt_lookup_min=0"), "lookup_min=0: not a whole number"),
        (lambda: None, ("cap", *NGRAM, "--draft-arg", "prompt_lookup_max=x"), "lookup_max=x: not a whole number"),
        (lambda: None, ("cap", *NGRAM, "--draft-arg", "prompt_lookup_min=true"), "min=True: not a whole number"),
        (lambda: None, ("cap", *NGRAM, "--draft-arg", "prompt_lookup_min=3", "--draft-arg", "prompt_lookup_max=2"),
         "prompt_lookup_min=3: above prompt_lookup_max=2"),
        (lambda: None, ("cap", "--draft", "./eagle3", "--method", "eagle3"), "--k is needed"),
        (lambda: None, ("cap", *EAGLE, "--draft-arg", "prompt_lookup_max=3"), "prompt_lookup_max: has no meaning"),
        (lambda: None, ("cap", *EAGLE, "--drafting", "deterministic"), "--drafting"),
        (lambda: None, ("cap", *EAGLE, "--device", "abacus"), "--device abacus: torch has no such device here"),
        (lambda: None, ("cap", *EAGLE, "--out", "free"), "--out free holds another run"),
        (lambda: None, ("cap", *EAGLE, "--out", "cap"), "--out cap: holds a capture: name another directory"),
    ],
)  # fmt: skip
def test_a_replay_that_cannot_be_is_one_line_and_leaves_nothing(
    call, captured: Path, damage: Callable[[], object], arguments: tuple[str, ...], says: str
) -> None:
    damage()
    out = () if "--out" in arguments else ("--out", "again")
    code, printed, err = call("replay", *arguments, *out)
    lines = [line for line in err.splitlines() if not line.endswith(" texts")]
    assert code == 4 and printed == "" and len(lines) == 1 and says in lines[0], err
    assert not Path("again").exists()


def test_a_checkpoint_that_lacks_a_tensor_is_named(call, captured: Path) -> None:
    weights = load_file("eagle3/model.safetensors")
    del weights["fc.weight"]
    save_file(weights, "eagle3/model.safetensors")
    code, _, err = call("replay", "cap", *EAGLE, "--out", "again")
    assert code == 4 and "./eagle3: no tensor fc.weight in its files" in err and not Path("again").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--layers", "4"), "--layers 4: ./target has layers 1 to 3"),
        (("--dtype", "int8"), "--dtype"),
        (("--batch", "0"), "--batch 0: at least one request"),
        (("--layers", "two"), "--layers two: not a list of whole numbers"),
    ],
)
def test_a_capture_that_cannot_be_is_one_line(call, free, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = call("capture", free(), "-o", "cap", *arguments)
    assert code == 4 and out == "" and err.count("\n") == 1 and says in err
    assert not Path("cap").exists()


def test_another_target_or_another_s_folder_or_a_replay_is_not_captured(call, free, captured: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        code, _, err = call("capture", *arguments)
        assert code == 4, err
        return str(err)

    free("--temp", "1", "--seeds", "1", name="other")
    assert "--out cap holds another capture (the texts:" in refused("other", "-o", "cap")
    assert "--out cap holds another capture (the layers:" in refused("free", "-o", "cap", "--layers", "1")
    assert call("replay", "cap", *EAGLE, "--out", "again")[0] == 0
    assert "again: is a replay itself" in refused("again", "-o", "new")
    simulated = ("run", "--target", "./target", "--draft", "./medusa", "--k", "3", "--engine", "simulated")
    assert call(*simulated, "--suite", "own.jsonl", "--temp", "1", "--out", "simulated")[0] == 0
    assert "was measured by simulated, which keeps no hidden states" in refused("simulated", "-o", "new")
    Path("own.jsonl").write_text('{"turns": ["changed", "and two"]}\n{"turns": ["other"]}\n{"turns": ["last one"]}\n')
    assert "its prompts are not those of today's" in refused("free", "-o", "new")
    shutil.rmtree("target")
    tiny.write_target(Path("target"), seed=9)
    assert "free: its target had weights sha256:" in refused("free", "-o", "new2")
    assert not Path("new2").exists()


def uniform(positions: int = 3, size: int = 24, value: float = 0.0, **kind: Any):
    """A drafter for which all tokens are as likely."""
    return lambda tokens, states, places: torch.full((positions, *places.shape, size), value, **kind)


def spoilt(value: float):
    """`uniform`, but for one logit of draft position 3 at one place."""

    def draft(tokens: torch.Tensor, states: Any, places: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(3, *places.shape, 24)
        logits[2, 0, 1, 5] = value
        return logits

    return draft


def greedy_hands(tokens: torch.Tensor, states: Any, places: torch.Tensor) -> torch.Tensor:
    """A drafter that works on the states it was given."""
    return states.final.mul_(0.5).sum() + torch.zeros(3, *places.shape, 24)


def test_an_evaluation_refuses_what_does_not_fit(captured: Path) -> None:
    nothing, ids = -torch.inf, "draft_ids: not a list of different token ids"
    for drafter, options, says in (
        (uniform(), {"temperature": 0.7}, "temperature=0.7: the texts were sampled at 1"),
        (uniform(size=23), {}, "the drafter has 23 tokens, the captured target 24: another vocabulary"),
        (uniform(), {"device": "abacus"}, "device abacus: torch has no such device"),
        (uniform(), {"device": "meta"}, "device meta: torch has no such device"),
        (uniform(2), {}, "k=3: the drafter gives 2 positions"),
        (uniform(size=2), {"draft_ids": [1, 24]}, "drafts token 24, the captured target has 24"),
        (uniform(size=2), {"draft_ids": [1, 1]}, ids),
        (uniform(size=2), {"draft_ids": [-1, 2]}, ids),
        (uniform(size=2), {"draft_ids": [1.5, 2]}, ids),
        (uniform(size=0), {"draft_ids": []}, ids),
        (uniform(), {"draft_ids": 3}, ids),
        (uniform(), {"drafting": "deterministic"}, "drafting=deterministic: probabilistic or greedy"),
        (uniform(), {"k": 0}, "k=0: not a whole number from 1 on"),
        (uniform(), {"k": 2.5}, "k=2.5: not a whole number from 1 on"),
        (uniform(), {"k": True}, "k=True: not a whole number from 1 on"),
        (lambda tokens, states, places: torch.zeros(3, 5, 24), {}, "logits have shape"),
        (lambda *_: None, {}, "the drafter gives NoneType: give logits"),
        (lambda *_: ["a"], {}, "the drafter gives str for draft position 1: give logits"),
        (uniform(dtype=torch.long, value=1), {}, "logits are torch.int64 on cpu: give floating-point numbers on cpu"),
        (uniform(device="meta"), {}, "logits are torch.float32 on meta: give floating-point numbers on cpu"),
        (uniform(value=torch.nan), {}, "draft position 1 are NaN, infinite"),
        (uniform(value=nothing), {"drafting": "greedy"}, "draft position 1 are NaN, infinite, or all -infinity"),
        (spoilt(torch.nan), {}, "draft position 3 are NaN, infinite"),
        (spoilt(torch.inf), {"drafting": "greedy"}, "draft position 3 are NaN, infinite"),
        (greedy_hands, {}, "changes what it is given"),
        ("./eagle3", {}, "drafter: './eagle3' is no function: `speceval.replay`"),
    ):
        with pytest.raises(speceval.UserError, match=says):
            speceval.evaluate(drafter, captured, **({"k": 3} | options))
    masked = speceval.evaluate(spoilt(nothing), captured, 3)  # a token that is never drafted is no fault
    assert masked.tau().value == pytest.approx(speceval.evaluate(uniform(), captured, 3).tau().value, abs=0.2)


def test_a_module_in_training_is_evaluated_as_it_would_be_served(captured: Path) -> None:
    class Drops(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.frozen = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5)
            self.frozen.eval()

        def forward(self, tokens: torch.Tensor, states: Any, places: torch.Tensor) -> list[torch.Tensor]:
            index = places[..., None].expand(-1, -1, states.final.shape[-1])
            return [self.frozen(self.whole(states.final.gather(1, index))) @ states.output.T] * 3

    module = Drops()
    found = [speceval.evaluate(module, captured, 3).tau().value for _ in range(2)]
    assert module.training and module.whole.training and not module.frozen.training
    assert found[0] == found[1] == speceval.evaluate(module.eval(), captured, 3).tau().value


def test_texts_without_a_second_token_are_no_capture_to_evaluate_on(call, free) -> None:
    assert call("capture", free("--temp", "1", "--max-tokens", "1"), "-o", "cap")[0] == 0
    with pytest.raises(speceval.UserError, match="cap: no text has a second token: there is nothing to draft"):
        speceval.evaluate(uniform(), "cap", 3)
    code, out, _ = call("replay", "cap", *EAGLE, "--out", "again", "--json")
    [run] = json.loads(out)["runs"]
    assert code == 0 and run["suites"]["own"]["tau_committed"]["value"] is None


def test_one_drafter_that_cannot_be_measured_does_not_stop_the_others(call, captured: Path) -> None:
    both = ("replay", "cap", "--draft", "./medusa,./nowhere,./mtp,dflash-x", "--k", "3", "--out", "runs", "--json")
    code, out, err = call(*both)
    assert code == 4 and [run["draft"] for run in json.loads(out)["runs"]] == ["./medusa", "./mtp"]
    last = err.splitlines()[-1]
    assert last.startswith("error: drafter './nowhere': no such directory; ") and "dflash-x" in last
    assert sorted(path.name for path in Path("runs").iterdir()) == ["medusa", "mtp"]
    shutil.copytree("medusa", "deep/medusa")
    assert call("replay", "cap", "--draft", "./medusa,./deep/medusa", "--k", "3", "--out", "same")[0] == 0
    assert {path.parent.parent.name for path in Path("same").glob("*/medusa/run.json")} == {Path.cwd().name, "deep"}
    code, _, err = call("replay", "cap", "--draft", "./medusa,./medusa", "--k", "3", "--out", "twice")
    assert code == 4 and "two of them would be written to twice/medusa: replay one after the other" in err
    assert not Path("twice").exists()


def test_weights_in_eight_bits_are_named_as_such(call, captured: Path) -> None:
    weights = load_file("eagle3/model.safetensors")
    save_file(weights | {"fc.weight": weights["fc.weight"].to(torch.float8_e4m3fn)}, "eagle3/model.safetensors")
    code, _, err = call("replay", "cap", *EAGLE, "--out", "again")
    assert code == 4 and "tensor fc.weight is torch.float8_e4m3fn: quantised weights" in err
    assert not Path("again").exists()


@pytest.mark.parametrize("room", [8_000, 15_000, 30_000], ids=["not for the head", "not for a shard", "for two shards"])
def test_a_disk_that_is_full_is_one_line_and_the_capture_goes_on(call, free, monkeypatch, room: int) -> None:
    run = free()
    assert call("capture", run, "-o", "whole", "--layers", "1,2,3")[0] == 0
    monkeypatch.setattr(write, "SHARD_BYTES", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        code, _, err = call("capture", run, "-o", "cap", "--layers", "1,2,3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4 and err.endswith(
        "error: cap: cannot be written: File too large: make room; the same command resumes\n"
    )
    assert Path("cap").exists() == (room > 13_000)
    code, _, err = call("capture", run, "-o", "cap", "--layers", "1,2,3")
    assert code == 0, err
    whole, resumed = (speceval.evaluate(uniform(), name, 3).steps for name in ("whole", "cap"))
    assert whole.equals(resumed)


def test_a_run_s_own_directory_is_no_place_for_its_capture(call, free) -> None:
    before = tree(free())
    code, _, err = call("capture", "free", "-o", "free")
    assert code == 4 and err == "error: --out free: holds a run: name another directory\n"
    assert tree(Path("free")) == before


def test_a_replay_counts_the_texts_of_every_turn(call, captured: Path) -> None:
    assert call("replay", "cap", *EAGLE, "--out", "again")[0] == 0
    again, source = read_run(Path("again")), read_run(Path("free"))
    assert again.turns["output_tokens"].equals(source.turns["output_tokens"])
    assert len(again.steps) == (source.turns["output_tokens"] - 1).sum()
    assert again.meta.spec.replay is not None and again.meta.fingerprint.prompts == source.meta.fingerprint.prompts


@pytest.mark.parametrize("error", [speceval.UserError("no"), KeyboardInterrupt()])
def test_what_ends_a_capture_before_its_manifest_leaves_nothing(call, free, monkeypatch, error: BaseException) -> None:
    def raises(*_: object) -> float:
        raise error

    run = free()
    monkeypatch.setattr(write, "_check_head", raises)
    assert call("capture", run, "-o", "deep/cap")[0] in (4, 130)
    assert not Path("deep/cap").exists()
    Path("mine").mkdir()
    Path("mine/note.txt").write_text("mine")
    call("capture", run, "-o", "mine")
    assert tree(Path("mine")) == {"note.txt": b"mine"}


def test_a_head_that_a_kill_left_is_not_taken_for_this_target_s(call, free, captured: Path) -> None:
    whole = (Path("cap") / "head.safetensors").read_bytes()
    Path("new").mkdir()
    save_file({"embedding": torch.zeros(24, 64)}, "new/head.safetensors")
    assert call("capture", "free", "-o", "new", "--layers", "1,2,3")[0] == 0
    assert Path("new/head.safetensors").read_bytes() == whole


def test_a_file_in_the_place_of_the_folder_is_named(call, free) -> None:
    run = free()
    Path("cap").write_text("x")
    code, _, err = call("capture", run, "-o", "cap")
    assert code == 4 and err.splitlines()[-1].endswith("--out cap: not a directory: name one, or a new one")


def shard(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], name: str = "states-00001") -> None:
    """Write a file of ./cap again, with a manifest that has its size."""
    path = Path("cap") / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in change(load_file(path)).items()}, path)
    manifest = json.loads(Path("cap/manifest.json").read_text())
    manifest["shards"][0]["bytes"] = Path("cap/states-00001.safetensors").stat().st_size
    edit(shards=manifest["shards"], head_bytes=Path("cap/head.safetensors").stat().st_size)


def lines(change: Callable[[list[dict]], object]) -> None:
    """Edit the conversations of ./cap."""
    path = Path("cap/texts.jsonl")
    content = [json.loads(line) for line in path.read_text().splitlines()]
    change(content)
    path.write_text("".join(json.dumps(line) + "\n" for line in content))


def cooler() -> None:
    run = json.loads(Path("cap/manifest.json").read_text())["run"]
    run["fingerprint"]["sampling"]["temperature"] = 0.2
    edit(run=run)


DAMAGES: list[tuple[Callable[[], object], str]] = [
    (lambda: shard(lambda t: {n: v for n, v in t.items() if n != "layer.2"}), r"tensor layer.2 should be F32 .* none"),
    (lambda: shard(lambda t: {n: v for n, v in t.items() if n != "log_p"}), "tensor log_p should be F32"),
    (lambda: shard(lambda t: {n: v[:7] for n, v in t.items()}), r"it has F32 \[7"),
    (lambda: shard(lambda t: {**t, "layer.1": t["layer.1"][:7]}), "tensor layer.1 should be"),
    (lambda: shard(lambda t: {**t, "final": t["final"][:, :9]}), "tensor final should be"),
    (lambda: shard(lambda t: {**t, "final": t["final"].long()}), "it has I64"),
    (lambda: edit(dtype="bfloat16"), "should be BF16"),
    (lambda: edit(dtype="float8"), "should be F8_E4M3"),
    (lambda: edit(hidden_size=7), "by the manifest"),
    (lambda: edit(shards=[]), "has not the rows"),
    (lambda: edit(replay="0" * 16), "not the texts that the manifest"),
    (cooler, "sampling differs from what was asked"),
    (lambda: shard(lambda t: {n: v[:20] for n, v in t.items()}, "head"), "tensor embedding should be a map"),
    (lambda: shard(lambda t: {"output": t["embedding"]}, "head"), "tensor embedding should be a map .* none"),
    (lambda: shard(lambda t: {**t, "final": t["final"] * torch.nan}), "holds numbers that are none"),
    (lambda: shard(lambda t: {**t, "log_p": t["log_p"] * torch.nan}), "holds numbers that are none"),
    (lambda: shard(lambda t: {**t, "log_p": t["log_p"] * 0 + 3}), "holds numbers that are none"),
    (lambda: lines(lambda all: all[0]["turns"][0].update(first_row=3)), "has not the rows"),
    (lambda: lines(lambda all: all[0]["turns"][0].update(token_ids=[])), "line 1 is damaged"),
    (lambda: lines(lambda all: all[0]["turns"][0]["prompt"].__setitem__(0, -4)), "tokens that its target has not"),
    (lambda: lines(lambda all: all[0]["turns"][0]["token_ids"].__setitem__(0, 24)), "tokens that its target has not"),
    (lambda: lines(lambda all: all[0]["turns"][0]["token_ids"].__setitem__(1, 5)), "not the texts that"),
    (lambda: lines(lambda all: all.append(all[0])), "has not the rows"),
    (lambda: lines(lambda all: all.pop()), "the shards have another number"),
    (lambda: Path("cap/texts.jsonl").unlink(), "the shards have another number"),
]  # fmt: skip


def test_what_does_not_fit_together_is_one_line_and_no_number(captured: Path) -> None:
    shutil.copytree("cap", "whole")
    for damage, says in DAMAGES:
        shutil.rmtree("cap")
        shutil.copytree("whole", "cap")
        damage()
        with pytest.raises(speceval.UserError, match=says) as error:
            capture = speceval.read_capture("cap")
            for text in capture.texts:
                capture.states(text)
        assert "\n" not in str(error.value) and str(error.value).startswith("cap/")
