"""What is a secret, and what of a text leaves the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from speceval import terminal
from speceval.private import is_secret, masked, secret_in

SECRET = [
    "hf_token",
    "apiKey",
    "HF-PASSWORD",
    "client_secret",
    "refreshtoken",
    "dbpassword",
    "clientsecret",
    "APIkey",
    "HFtoken",
    "AWSsecret",
    "passWord",
    "pass_phrase",
    "passphrases",
    "master_key",
    "x-api-key",
    "azure_storage_account_key",
    "X-Amz-Security-Token",
    "DB_PASS",
    "basic-auth",
    "deploy_key",
    "wandb_key",
    "OPENAI_KEY",
    "clientKey",
    "Ocp-Apim-Subscription-Key",
]
HARMLESS = [
    "max_tokens",
    "tokenizer",
    "eos_token_id",
    "bos_token",
    "think_token",
    "pard_token",
    "ptd_token_id",
    "image_token",
    "num_key_value_heads",
    "keyword",
    "secretary",
    "passes",
    "bypass",
    "pass_config",
    "tokens",
    "detokenize",
    "subtoken",
    "api_key_env",
    "public_key",
    "ssl_keyfile",
    "primary_key",
    "pass",
    "author",
    "suffix_decoding_min_token_prob",
    "long_prefill_token_threshold",
    "encoder_cudagraph_token_budgets",
    "rope_kvcache_fusion_max_token_num",
]


def test_keys_of_secrets_are_told_from_others_by_whole_and_by_glued_words() -> None:
    assert [key for key in SECRET if not is_secret(key)] == []
    assert [key for key in HARMLESS if is_secret(key)] == []


@pytest.mark.parametrize(
    "text",
    [
        "https://u:S3@S3@h/x",
        "https:/u:S3@h/x",
        "https://h/?sig=S3",
        "https://hooks.slack.com/services/T0/B0/S3",
        "--api-key S3 --x",
        "Authorization: Basic S3S3S3S3",
        "-H 'Authorization: ApiKey S3'",
        "https://h/?user=u&pass=S3",
        "proxy u:S3@proxy.example:3128",
        'password="S3',
        f"cannot read npm_{'S3' * 20}",
        f"ASIA{'S3' * 8}",
    ],
)
def test_secrets_in_a_text_are_masked_whole(text: str) -> None:
    assert "S3" not in masked(text)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"api": {"key": "S3"}}, "api.key"),
        ({"auth": {"user": "u", "pass": "S3"}}, "auth.pass"),
        ({"auth": ["u", "S3"]}, "auth"),
        ({"file": "a: 1\ntoken: S3\n"}, "file"),
        ({"url": "https%3A%2F%2Fu%3AS3%40h"}, "url"),
        ({"auth": {"type": "none"}}, None),
        ({"pass_config": {"fuse": True}, "enable_pass": True}, None),
        ({"eos_token": {"id": 3, "content": "x"}}, None),
        ({"image": "vllm:0.3@sha256:abc", "model": "org/name@main", "note": "token: as it is"}, None),
    ],
)
def test_secrets_are_found_at_any_depth_and_in_any_form(value: dict[str, object], place: str | None) -> None:
    assert secret_in(value) == place


def test_the_name_of_a_file_hides_nothing_of_what_is_said_about_it() -> None:
    assert masked("/etc/passwd: has 5 bytes") == "/etc/passwd: has 5 bytes"


def test_no_line_of_ours_repeats_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "token=S3"
    path.write_text("")
    terminal.wrote(path)
    terminal.console().print(f"starting vllm; its log: {path}/https:/u:S3@h/x", soft_wrap=True)
    told = "".join(capsys.readouterr())
    assert "S3" not in told and told.count("***") == 2
