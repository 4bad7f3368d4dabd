"""Files that others wrote are read as plain data, or refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from speceval.errors import UserError
from speceval.estimate import baseline
from speceval.foreign import json_object, read_json


def test_a_config_json_is_no_gzip_file_and_ours_may_be(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(gzip.compress(b'{"a": 1}'))
    assert read_json(path) == {"a": 1}
    with pytest.raises(UserError, match="not UTF-8 text"):
        json_object(path)


@pytest.mark.parametrize("kind", [[], ["x"], {}, {"x": 1}, None, 1, "other"])
def test_a_file_of_another_format_is_no_baseline_whatever_it_says_that_it_is(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps({"format": kind}))
    with pytest.raises(UserError, match="not a baseline file"):
        baseline.read(path)
