"""The request and its fingerprint."""

import pytest
from pydantic import Field

from speceval.catalog.methods import default_drafting
from speceval.errors import UserError
from speceval.protocol import RunSpec, flag, make_spec, request_seed

BASE = {"target": "t", "draft": "d", "k": 3, "temperature": 1.0, "drafting": "probabilistic", "suites": ("demo",)}


def spec(**changes: object) -> RunSpec:
    return make_spec(**{**BASE, **changes})


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("temperature", -1, "--temp: .*greater than or equal to 0 .*got -1"),
        ("temperature", float("nan"), "--temp"),
        ("k", 0, "--k"),
        ("top_p", 0, "--top-p"),
        ("top_k", -1, "--top-k"),
        ("limit", 0, "--limit"),
        ("max_tokens", 0, "--max-tokens"),
        ("batch", 0, "--batch"),
        ("seeds", (1, 1), "--seeds: .*twice"),
        ("suites", (), "--suite"),
        ("drafting", "lucky", "--drafting"),
        ("temperature", 0, "probabilistic drafting needs a temperature above 0"),
        ("tempreature", 1, "extra"),
    ],
)
def test_a_wrong_field_is_named_by_its_flag_in_one_line(field: str, value: object, line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        spec(**{field: value})
    assert "\n" not in str(raised.value)


def test_every_field_moves_the_identity() -> None:
    changes = {
        "target": "u", "draft": "e", "k": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 8, "drafting": "greedy",
        "suites": ("gsm8k",), "limit": 3, "shuffle_seed": 1, "max_tokens": 7, "seeds": (0, 1), "batch": 2,
        "prefix_caching": True, "chat_template_kwargs": {"a": 1}, "engine_args": {"a": 1}, "trust_remote_code": True,
        "draft_truncation": False, "rejection": "block", "record": False, "replay": "0123", "until": 0.01,
        "against": "run:0123", "engine": "simulated", "runner": "v2", "method": "eagle",
        "draft_args": {"prompt_lookup_max": 3}, "stratified": True, "shard": "1/2", "rate": 2.5,
    }  # fmt: skip
    assert set(changes) == set(RunSpec.model_fields)
    identities = {spec(**{name: value}).identity for name, value in changes.items()} | {spec().identity}
    assert len(identities) == len(changes) + 1


class Later(RunSpec):
    """The request of a later version, which can ask for more."""

    thinking: bool = False
    headers: dict[str, str] = Field(default_factory=dict)


def test_a_field_that_a_later_version_adds_leaves_the_names_of_all_runs_that_do_not_use_it() -> None:
    asked = BASE | {"until": 0.01, "record": False, "chat_template_kwargs": {"a": 1}}
    assert (Later(**asked).name, Later(**asked).older_names) == (spec(**asked).name, spec(**asked).older_names)
    later = {Later(**asked, thinking=True).name, Later(**asked, headers={"a": "b"}).name, spec(**asked).name}
    assert len(later) == 3


def test_the_directory_name_tells_hub_ids_apart_without_slashes() -> None:
    assert "/" not in spec(target="meta-llama/Llama-3.1-8B-Instruct", draft="./own dir/").name


def test_sampled_drafts_are_the_default_exactly_when_the_target_samples() -> None:
    assert default_drafting("eagle3", 1.0) == "probabilistic"
    assert default_drafting("eagle3", 0.0) == "greedy"
    assert default_drafting("ngram", 1.0) == "deterministic"


def test_request_seeds_differ_between_requests_and_fit_in_63_bits() -> None:
    keys = [(s, suite, c, t) for s in (0, 1) for suite in ("a", "b") for c in ("1", "11") for t in (1, 2)]
    seeds = {request_seed(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("num_speculative_tokens", "--k"),
        ("draft_sample_method", "--drafting"),
        ("rejection_sample_method", "--rejection"),
        ("model", "--draft names"),
        ("synthetic_acceptance_length", "selftest"),
        ("num_speculative_tokens_per_batch_size", "K is the same"),
    ],
)
def test_what_has_a_flag_of_its_own_is_not_given_to_the_drafter_as_a_further_key(name: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"--draft-arg: {name} .*{told}"):
        make_spec(**BASE, draft_args={name: 1})


@pytest.mark.parametrize("field", ["draft_args", "engine_args", "chat_template_kwargs"])
@pytest.mark.parametrize("name", ["hf_token", "apiKey", "HF-PASSWORD", "client_secret"])
def test_a_secret_is_refused_wherever_it_is_given(field: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"{flag(field).name} {name} is a secret .* in the environment"):
        make_spec(**BASE, **{field: {name: "x"}})


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"x": [{"name": "HF_TOKEN", "value": "x"}]}, "x.0.value"),
        ({"x": ["--api-key", "x"]}, "x.1"),
        ({"x": [["hub_token", "x"]]}, "x.0.1"),
        ({"x": "https://a:b@c@host/d"}, "x"),
        ({"x": "https://host/?api%5Fkey=x"}, "x"),
        ({"x": "https://host/?X-Amz-Signature=x"}, "x"),
        ({"x": "-----BEGIN PRIVATE KEY-----\nx"}, "x"),
        ({"hf_abcdefghijklmnopqrst": 1}, r"\*\*\*"),
    ],
    ids=["name and value", "flag", "pair", "at sign", "percents", "signature", "key file", "as a key"],
)
def test_a_secret_is_refused_in_whatever_shape_it_is_given(value: dict[str, object], place: str) -> None:
    with pytest.raises(UserError, match=rf"--engine-arg {place} is a secret"):
        make_spec(**BASE, engine_args=value)


@pytest.mark.parametrize("name", ["max_tokens", "num_speculative_tokens_more", "tokenizer_mode", "eos_token_id"])
def test_what_only_sounds_like_a_secret_is_taken(name: str) -> None:
    assert make_spec(**BASE, engine_args={name: "x"}).engine_args == {name: "x"}


def test_a_request_without_further_keys_is_written_as_it_was_before_there_were_any() -> None:
    assert {"method", "draft_args"}.isdisjoint(spec().model_dump(mode="json"))
    asked = spec(draft_args={"prompt_lookup_max": 3}, method="eagle")
    assert RunSpec(**asked.model_dump(mode="json")) == asked


@pytest.mark.parametrize("shard", ["2/4", "02/4", "2/04"])
def test_a_shard_has_one_spelling(shard: str) -> None:
    """Shards are merged by it."""
    spec = RunSpec(target="zoo", draft="d", k=3, temperature=0, drafting="greedy", suites=("demo",), shard=shard)
    assert spec.shard == "2/4"
