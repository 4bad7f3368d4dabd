"""`speceval verify --runner v2` on each drafting method that no other test has on V2: nothing that it tests fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import live
from support.pairs import NGRAM_PROMPT, PROMPTS, write_pair

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.long]

SAMPLES = 1500
"""What so few continuations tell: the tests of each row see a q or a token that is not the verifier's at once."""
BLOCKS = {"dflash-causal": 4, "dflash-cut": 4, "dflash2": 4, "lilicorr": 4, "dspark": 4, "dspark-cut": 4}
KINDS = {"eagle": 4, "eagle3-cut": 4, "ngram": 4, "medusa": 3, "mlp": 3} | BLOCKS
"""Kind of drafter -> K."""
ENGINE = ("dtype=float32", "enforce_eager=true", "max_model_len=256", "max_num_batched_tokens=2560")


@pytest.mark.parametrize("kind", KINDS)
def test_no_test_fails_on_the_v2_runner(kind: str, tmp_path: Path) -> None:
    target, draft = write_pair(tmp_path, kind)
    command = [sys.executable, "-m", "speceval", "verify", "--runner", "v2", "--target", target, "--draft", draft]
    command += ["--k", str(KINDS[kind]), "--samples", str(SAMPLES), "--n-tokens", "5", "--batch", "256", "--json"]
    command += ["--out", str(tmp_path / "out")]
    for prompt in (NGRAM_PROMPT,) if kind == "ngram" else PROMPTS:
        command += ["--prompt", prompt]
    for argument in ENGINE:
        command += ["--engine-arg", argument]
    places = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | live.V2 | places, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(kind, report["line"])
    assert report["engine"]["runner"] == "V2" and report["rows_tested"]
    assert report["failed"] == 0 and report["missing"] == [], report["line"]
