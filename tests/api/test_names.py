"""`import speceval`: what it offers, what it costs, and who must do with it alone."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import speceval
from speceval.measure.job import prepare
from speceval.protocol import RunSpec

ROOT = Path(__file__).resolve().parents[2]
USERS = sorted((ROOT / "notebooks").glob("*.py"))
HEAVY = {"numpy", "pandas", "pydantic", "rich", "scipy", "torch", "typer", "vllm", "yaml"}


def test_import_speceval_loads_nothing() -> None:
    code = "import sys, speceval; dir(speceval); print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "speceval" in loaded and not HEAVY & set(loaded)


def test_a_public_name_is_named_alike_for_readers_tools_and_the_loader() -> None:
    tree = ast.parse(inspect.getsource(speceval))
    (for_tools,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in for_tools.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    loaded = {name: home for home, names in speceval._HOMES.items() for name in names}
    assert typed == loaded
    assert speceval.__all__ == sorted(loaded)
    assert set(speceval.__all__) <= set(dir(speceval))
    assert [name for name in speceval.__all__ if getattr(speceval, name) is None] == []


def test_what_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'speceval' has no attribute 'measure_all'"):
        _ = speceval.measure_all


def test_every_public_name_is_documented_and_typed() -> None:
    for name in speceval.__all__:
        member = getattr(speceval, name)
        assert inspect.getdoc(member), name
        if inspect.isfunction(member):
            signature = inspect.signature(member)
            assert signature.return_annotation is not signature.empty, name
            assert all(one.annotation is not one.empty for one in signature.parameters.values()), name


def test_run_has_every_field_of_a_request_with_its_default() -> None:
    parameters = inspect.signature(speceval.run).parameters
    assert parameters.keys() - RunSpec.model_fields.keys() == {
        *("speedup", "ray", "replicas", "gpus_per_replica", "data_dir", "out", "progress")
    }
    assert RunSpec.model_fields.keys() <= parameters.keys()
    chosen_later = {"k", "drafting", "suites", "chat_template_kwargs", "draft_args", "engine_args"}
    for name, field in RunSpec.model_fields.items():
        if name not in chosen_later and not field.is_required():
            assert parameters[name].default == field.default, name


def test_verify_and_run_agree_on_what_they_share() -> None:
    of_run, of_verify = (inspect.signature(function).parameters for function in (speceval.run, speceval.verify))
    shared = of_run.keys() & of_verify.keys()
    assert {"k", "drafting", "top_p", "engine_args", "rejection"} <= shared
    differ = {name for name in shared if of_run[name] != of_verify[name]}
    assert differ == {"temperature", "batch"}
    assert inspect.signature(prepare).parameters.keys() <= {
        *of_run,
        "suite_names",
        "texts",
        "source",
        "load",
        "long",
        "fields",
    }


def imported(path: Path) -> Iterator[str]:
    """What a file takes from speceval, as "speceval.NAME"; modules below it by their dotted name."""
    for node in ast.walk(ast.parse(path.read_text().replace("%matplotlib inline", ""))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "speceval":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("speceval."))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "speceval":
            yield f"speceval.{node.attr}"


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.stem)
def test_notebooks_use_only_what_import_speceval_offers(path: Path) -> None:
    used = list(imported(path))
    assert used
    assert [name for name in used if name.removeprefix("speceval.") not in speceval.__all__] == []


SNIPPET = """
import speceval

run: speceval.Run = speceval.run("zoo", "lk-eagle3", temperature=1, drafting="greedy")
value: float | None = run.tau().value
text: str = speceval.table([run, "results/other"], format="latex")
rows: list[dict[str, object]] = list(speceval.table(run).records)
change: speceval.Estimate = speceval.compare(run, "results/other")[0].relative_percent
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "Success"),
        ('speceval.run("zoo", "x", temprature=1)', 'Unexpected keyword argument "temprature"'),
        ('speceval.run("zoo", "x", temperature=1, drafting="lucky")', 'Argument "drafting"'),
        ('speceval.table(run, layout="round")', "No overload variant"),
        ("run.tua()", '"Run" has no attribute "tua"'),
        ("speceval.compare(run)[0].p_value + 1", "Unsupported operand types"),
    ],
)
def test_a_type_checker_sees_the_real_types(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "user.py"
    file.write_text(SNIPPET + line + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert says in done.stdout, done.stdout
