"""Sweeps: what a file stands for, in which order, and that every cell is an ordinary run that is measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import speceval
from speceval import UserError
from speceval.engines.simulated import SimulatedEngine
from speceval.engines.vllm.start import on_cpu
from speceval.measure.sweep import names, prepare_sweep, read_sweep_file
from speceval.measure.sweep.file import SweepFile, requests
from speceval.show import sweeps as shown
from speceval.store.journal import Store
from speceval.suites import load_or_count
from speceval.zoo import DRAFTERS

COMMON = {"target": "zoo", "suites": ["demo"], "engine": "simulated", "max_tokens": 16, "limit": 4}


def written(folder: Path, **fields: Any) -> str:
    content = {"name": "s", "common": COMMON, "axes": {"draft": ["kl-eagle3", "lk-eagle3"], "temperature": [0, 1]}}
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(content | fields, sort_keys=False))
    return str(path)


def file(**fields: Any) -> SweepFile:
    return SweepFile.model_validate({"name": "s", **fields})


def labels(sweep: Any) -> list[str]:
    return [f"{cell.job.spec.draft} {cell.job.spec.temperature:g} {cell.how}" for cell in sweep.cells]


def test_axes_are_multiplied_and_later_fields_win() -> None:
    asked = requests(
        file(
            common={"target": "zoo", "k": 3, "engine_args": {"a": 1}},
            axes={"drafter": [{"draft": ["x", "y"], "k": 5}, {"draft": "z"}], "temperature": [0, 1]},
            include=[{"draft": "w", "seeds": "0-2", "engine_args": {"b": 2}}],
            exclude=[{"draft": "y", "temperature": 1}],
        )
    )
    told = [(one["draft"], one["k"], one.get("temperature")) for one in asked]
    assert told == [("x", 5, 0), ("x", 5, 1), ("y", 5, 0), ("z", 3, 0), ("z", 3, 1), ("w", 3, None)]
    assert asked[-1]["seeds"] == (0, 1, 2) and asked[-1]["engine_args"] == {"a": 1, "b": 2}


def test_a_combination_that_is_named_twice_is_one_run() -> None:
    assert len(requests(file(axes={"draft": ["x"]}, include=[{"draft": "x"}]))) == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"axis": {}}, "s.yaml: field 'axis': there is no such field; did you mean axes?"),
        ({"common": {"tagret": "zoo"}}, "field 'common.tagret': there is no such field of a run; did you mean target?"),
        ({"axes": {"drafter": ["x"]}}, "field 'axes.drafter.0': 'drafter' is no field of a run, so it needs mappings"),
        ({"axes": {"draft": []}}, "no runs: an axis is empty, or everything is excluded"),
        ({"exclude": [{"draft": "nobody"}]}, "no combination has that"),
        ({"exclude": [{"temperature": [0, 1]}]}, "no runs"),
        ({"axes": {"draft": ["kl-eagle3", "nobody"], "temperature": [1]}}, "unknown drafter 'nobody' for target 'zoo'"),
        ({"axes": {"target": ["zoo", "zo"], "draft": ["kl-eagle3"], "temperature": [1]}}, "unknown target 'zo'"),
        ({"common": COMMON | {"target": "nothing"}}, "unknown target 'nothing'"),
        ({"axes": {"draft": ["kl-eagle3"]}}, "a run has no temperature"),
        ({"axes": {"temperature": [1]}}, "a run has no draft"),
        ({"axes": {"draft": ["kl-eagle3"], "temperature": [1], "k": [0]}}, "'axes.k.0': input should be greater than"),
        (
            {"axes": {"draft": ["kl-medusa"], "temperature": [1], "k": [6, 9]}},
            "drafts at most K=6 tokens a step, not 9",
        ),
        ({"common": COMMON | {"seeds": "a"}}, "seeds a: not a list of whole numbers"),
        ({"common": COMMON | {"until": "soon"}}, "until soon: not a percentage"),
        ({"common": COMMON | {"engine_args": 3}}, "'common.engine_args': input should be a valid dictionary, not 3"),
        ({"runs": "{draft}"}, "two runs are called kl-eagle3"),
        ({"runs": "{drafter}"}, "'drafter' is no field of a run"),
        ({"name": "../x"}, "field 'name': '../x': letters, digits"),
        ({"name": "/tmp/x"}, "field 'name': '/tmp/x': letters, digits"),
        ({"common": COMMON | {"k": 1.5}}, "'common.k': input should be a valid integer, not 1.5"),
        ({"common": COMMON | {"k": "3"}}, "'common.k': input should be a valid integer, not '3'"),
        ({"common": COMMON | {"temperature": [0, 1]}}, "valid number, not [0, 1]: several values are an axis"),
        ({"axes": {"draft": ["kl-eagle3"], "temperature": ["warm"]}}, "'axes.temperature.0': input should be a valid"),
        ({"common": COMMON | {"suites": 5}}, "'common.suites': suites 5: not names of suites"),
        ({"include": [{"seeds": 1.5}]}, "'include.0.seeds': seeds 1.5: not a list of whole numbers"),
        ({"common": COMMON | {"engine": {"a": 1}}}, "'common.engine': input should be a valid string"),
        ({"common": COMMON | {"temp": 1}}, "'common.temp': there is no such field of a run; did you mean temperature?"),
        ({"common": COMMON, "axes": {"suite": ["demo"]}}, "so it needs mappings; did you mean suites?"),
        ({"axes": {}}, "no runs: there is neither an axis nor include"),
        (
            {"axes": {"draft": ["kl-eagle3"], "top_k": [*range(200)], "batch": [*range(1, 201)]}},
            "40,000 runs, at most 10,000",
        ),
        ({"include": [{"top_k": [*range(200)], "batch": [*range(1, 201)]}]}, "more than 10,000 runs"),
        ({"runs": "T{temperature:.2f}"}, "a field is its name alone in braces"),
        ({"runs": "always"}, "must be the name of a folder with fields in it"),
        ({"runs": "../{draft}"}, "must be the name of a folder with fields in it"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        prepare_sweep(read_sweep_file(written(tmp_path, **fields)), tmp_path / "out")
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [("- 1", "not a sweep"), ("a: [", "not YAML"), ("name: s\naxes: {draft: [a], draft: [b]}", "'draft' stands twice")],
)
def test_a_file_that_is_no_sweep_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        read_sweep_file(str(tmp_path / "s.yaml"))
    with pytest.raises(UserError, match=r"unknown sweep 'demo-al'; did you mean demo-all\?; known: demo, demo-all"):
        read_sweep_file("demo-al")
    with pytest.raises(UserError, match="no such file"):
        read_sweep_file(str(tmp_path / "none.yaml"))


def test_drafters_that_belong_to_another_target_of_the_file_are_left_out(tmp_path: Path) -> None:
    axes = {"target": ["zoo", "gpt-oss-20b"], "draft": ["kl-eagle3", "redhat-eagle3"], "temperature": [1]}
    common = {name: value for name, value in COMMON.items() if name != "target"}
    sweep = prepare_sweep(read_sweep_file(written(tmp_path, axes=axes, common=common)), tmp_path)
    assert labels(sweep) == ["kl-eagle3 1 start", "redhat-eagle3 1 start"]
    pairs = ["target=zoo, draft=redhat-eagle3", "target=gpt-oss-20b, draft=kl-eagle3"]
    assert [line.split(":")[0] for line in sweep.left_out] == pairs


def test_combinations_that_cannot_be_are_left_out_of_those_that_can(tmp_path: Path) -> None:
    axes = {"draft": ["kl-eagle3", "kl-medusa"], "k": [6, 7], "temperature": [0, 1]}
    path = written(tmp_path, axes=axes | {"drafting": ["greedy", "probabilistic"]})
    sweep = prepare_sweep(read_sweep_file(path), tmp_path)
    runs = [(spec.draft, spec.k, spec.temperature, spec.drafting) for spec in (cell.job.spec for cell in sweep.cells)]
    drawn = [(0.0, "greedy"), (1.0, "greedy"), (1.0, "probabilistic")]
    pairs = [("kl-eagle3", 6), ("kl-eagle3", 7), ("kl-medusa", 6)]
    assert sorted(runs) == sorted((*pair, *how) for pair in pairs for how in drawn)
    assert [line.split(":")[0] for line in sweep.left_out] == [
        "temperature=0, drafting=probabilistic",
        "draft=kl-medusa, k=7",
    ]


def test_a_plan_and_a_label_tell_runs_apart_by_whatever_differs(tmp_path: Path) -> None:
    axes = {"draft": ["kl-eagle3"], "temperature": [1], "top_k": [0, 50], "seeds": ["0-3", 7]}
    axes |= {"length": [{"engine_args": {"max_model_len": [512]}} | {"engine_args": {"max_model_len": 512}}, {}]}
    sweep = prepare_sweep(read_sweep_file(written(tmp_path, axes=axes)), tmp_path)
    told = [row["settings"] for row in shown.plan(sweep)["cells"]]
    assert len(set(told)) == 8 and "top_k=50 seeds=0-3 engine_args.max_model_len=512" in told
    assert all(cell.label.endswith(cell.settings) for cell in sweep.cells)


def test_a_mapping_is_excluded_by_a_part_of_it_and_null_is_the_default() -> None:
    axes = {"engine_args": [{"a": 1}, {"a": 2}, None], "k": [3, None]}
    asked = requests(
        file(common={"engine_args": {"b": 1}}, axes=axes, exclude=[{"engine_args": {"a": 1}}, {"k": None}])
    )
    assert [(one.get("engine_args"), one["k"]) for one in asked] == [({"a": 2, "b": 1}, 3), (None, 3)]


def test_cells_are_ordered_so_that_swaps_are_many(tmp_path: Path) -> None:
    axes = {"draft": ["kl-eagle3", "lk-eagle3"], "temperature": [0, 1, 0.5]}
    sweep = prepare_sweep(read_sweep_file(written(tmp_path, axes=axes)), tmp_path)
    assert labels(sweep) == [
        "kl-eagle3 0 start",
        "kl-eagle3 1 same",
        "kl-eagle3 0.5 same",
        "lk-eagle3 0 swap",
        "lk-eagle3 1 same",
        "lk-eagle3 0.5 same",
    ]


def test_every_cell_is_the_run_that_an_engine_of_its_own_gives(tmp_path: Path) -> None:
    done = speceval.sweep(written(tmp_path), out=tmp_path / "out")
    assert done.engines == {"start": 1, "swap": 1, "same": 2} and done.failed == {}
    for run in done:
        spec = run.meta.spec
        alone = speceval.run(
            "zoo", spec.draft, temperature=spec.temperature, suites=["demo"], max_tokens=16, limit=4,
            engine="simulated", out=tmp_path / "alone" / run.directory.name,
        )  # fmt: skip
        assert alone.meta.spec == spec and alone.meta.fingerprint == run.meta.fingerprint
        assert alone.steps.equals(run.steps) and run.directory.name == spec.name


def test_what_is_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speceval.sweep(written(tmp_path, axes={"draft": ["kl-eagle3"], "temperature": [1]}), out=tmp_path / "out")
    monkeypatch.setattr(SimulatedEngine, "swap", lambda *_: pytest.fail("nothing to swap"))
    axes = {"draft": ["kl-eagle3", "lk-eagle3"], "temperature": [1]}
    done = speceval.sweep(written(tmp_path, axes=axes), out=tmp_path / "out")
    assert len(done.runs) == 2 and done.engines == {"start": 1, "swap": 0, "same": 0}


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SimulatedEngine.step
    calls = []

    def breaking(self: SimulatedEngine) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("out of luck")
        return step(self)

    monkeypatch.setattr(SimulatedEngine, "step", breaking)
    done = speceval.sweep(written(tmp_path), out=tmp_path / "out")
    assert list(done.failed.values()) == ["ValueError: out of luck"]
    assert len(done.runs) == 3 and done.engines == {"start": 1, "swap": 1, "same": 1}  # the first start was for nothing
    again = speceval.sweep(written(tmp_path), out=tmp_path / "out")
    assert len(again.runs) == 4 and again.failed == {}


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SimulatedEngine.step
    calls = []

    def interrupted(self: SimulatedEngine) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(SimulatedEngine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        speceval.sweep(written(tmp_path), out=tmp_path / "out")
    resumed = speceval.sweep(written(tmp_path), out=tmp_path / "out")
    whole = speceval.sweep(written(tmp_path), out=tmp_path / "whole")
    assert [str(run.tau()) for run in resumed] == [str(run.tau()) for run in whole]


def test_fields_that_are_changed_hold_for_every_run(tmp_path: Path) -> None:
    done = speceval.sweep(written(tmp_path), out=tmp_path / "out", until=0.2, changes={"limit": 2, "seeds": "0-1"})
    assert {(run.meta.spec.limit, run.meta.spec.seeds, run.meta.spec.until) for run in done} == {(2, (0, 1), 0.2)}
    with pytest.raises(UserError, match=r"'set.limt': there is no such field of a run; did you mean limit\?"):
        speceval.sweep(written(tmp_path), changes={"limt": 2})


def test_the_demo_sweeps_ask_for_the_runs_that_are_in_the_repository() -> None:
    root = Path(__file__).resolve().parents[2] / "results" / "reference"
    for name, count in (("demo", 6), ("demo-all", 40)):
        sweep = prepare_sweep(read_sweep_file(name))
        assert len(sweep.cells) == count
        for cell in sweep.cells:
            assert speceval.read_run(root / name / cell.job.directory.name).meta.spec.identity == cell.job.spec.identity
    assert {cell.job.spec.draft for cell in sweep.cells} == set(DRAFTERS)
    starts = 5 if on_cpu() else 10  # an engine of the V2 runner, which a GPU may choose, draws its drafts in one way
    assert [cell.how for cell in sweep.cells].count("start") == starts


def test_the_paper_s_sweep_lists_every_published_figure() -> None:
    plan = shown.plan(prepare_sweep(read_sweep_file("paper"), load=load_or_count))
    assert {row["settings"] for row in plan["cells"]} == {""}  # what a target brings with it tells no runs apart
    assert len(plan["cells"]) == 222 and None not in [row["published"] for row in plan["cells"]]
    without = [row for row in plan["cells"] if row["state"] == shown.NO_CHECKPOINT]
    assert len(without) + 3 * plan["runs"] == 222
    assert plan["tokens_left"] == 34 * 1024 * (80 * 2 + 164 + 1319)
    assert "222 cells" in next(iter(shown.plan_lines(plan)))


def test_a_plan_tells_what_is_measured_and_estimates_the_rest_by_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = shown.plan(prepare_sweep(read_sweep_file(path), tmp_path / "out"))
    assert before["tokens_left"] == 4 * 4 * 16 and before["seconds_left"] is None and before["measured"] == 0
    speceval.sweep(written(tmp_path, axes={"draft": ["kl-eagle3"], "temperature": [1]}), out=tmp_path / "out")
    plan = shown.plan(prepare_sweep(read_sweep_file(written(tmp_path)), tmp_path / "out"))
    assert plan["measured"] == 1 and 0 < plan["tokens_left"] < 4 * 4 * 16 and plan["seconds_left"] > 0
    assert [row["state"] for row in plan["cells"]].count("measured") == 1


def test_a_plan_knows_what_a_killed_run_has_and_which_engines_are_still_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = Store.append

    def killed(self: Store, *arguments: Any) -> None:
        appended(self, *arguments)
        if self.directory.name.startswith("zoo-lk") and len(self.done) == 3:
            raise ValueError  # as after a kill, run.json tells nothing of these conversations

    monkeypatch.setattr(Store, "append", killed)
    path = written(tmp_path, axes={"draft": ["kl-eagle3", "lk-eagle3"], "temperature": [1]})
    assert len(speceval.sweep(path, out=tmp_path / "out").failed) == 1
    plan = shown.plan(prepare_sweep(read_sweep_file(path), tmp_path / "out"))
    assert [(row["state"], row["engine"]) for row in plan["cells"]] == [("measured", None), ("3 of 4", "start")]
    whole = plan["cells"][1]["tokens"]
    assert plan["tokens_left"] == pytest.approx(whole / 4, abs=1) and plan["engine_starts"] == 1


def test_every_built_in_sweep_can_be_planned() -> None:
    assert names() == ["demo", "demo-all", "paper"]


BY_DIFFERENCE = {"limit": None, "seeds": "0-3", "max_tokens": 40}


def test_until_by_difference_measures_the_others_against_the_whole_runs_of_one_drafter(tmp_path: Path) -> None:
    path = written(tmp_path, common=COMMON | BY_DIFFERENCE)
    prepared = prepare_sweep(read_sweep_file(path), tmp_path / "plan", changes={"until": 0.3}, over="lk-eagle3")
    order = [(cell.job.spec.draft, cell.job.spec.until, cell.against is None) for cell in prepared.cells]
    assert sorted(order) == sorted([("lk-eagle3", None, True), ("kl-eagle3", 0.3, False)] * 2)
    assert all(
        cell.against is None or cell.against in {before.job.directory for before in prepared.cells[:number]}
        for number, cell in enumerate(prepared.cells)
    )
    done = speceval.sweep(path, out=tmp_path / "out", until=0.3, over="lk-eagle3")
    stopped = {run.meta.spec.draft: run.meta.stopping for run in done}
    assert done.failed == {} and len(done.runs) == 4 and stopped["lk-eagle3"] is None
    assert stopped["kl-eagle3"].quantity == "relative difference of tau"
    assert stopped["kl-eagle3"].against in {run.meta.name for run in done}
    again = speceval.sweep(path, out=tmp_path / "out", until=0.3, over="lk-eagle3")
    assert again.engines == {"start": 0, "swap": 0, "same": 0} and len(again.runs) == 4


@pytest.mark.parametrize(
    ("over", "until", "says"),
    [
        ("nobody", 0.1, "over nobody: no run of sweep s has this drafter"),
        ("kl-eagle3", None, "over kl-eagle3: says what until is about"),
    ],
)
def test_a_difference_to_what_is_not_there_is_refused(
    tmp_path: Path, over: str, until: float | None, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        speceval.sweep(written(tmp_path), out=tmp_path / "out", until=until, over=over)
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_no_match_among_those_it_is_compared_with_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, exclude=[{"draft": "kl-eagle3", "temperature": 1}])
    with pytest.raises(UserError, match=r"over kl-eagle3: no runs of it are like .* in all but the drafter"):
        speceval.sweep(path, out=tmp_path / "out", until=0.1, over="kl-eagle3")


def test_a_run_is_compared_with_the_one_that_drafts_as_it_does(tmp_path: Path) -> None:
    axes = {"draft": ["lk-eagle3", "kl-eagle3"], "drafting": ["probabilistic", "greedy"]}
    path = written(tmp_path, axes=axes, common=COMMON | {"temperature": 1})
    cells = prepare_sweep(read_sweep_file(path), tmp_path / "out", changes={"until": 0.1}, over="lk-eagle3").cells
    drafting = {cell.job.directory: cell.job.spec.drafting for cell in cells}
    against = {cell.job.spec.drafting: drafting[cell.against] for cell in cells if cell.against is not None}
    assert against == {"probabilistic": "probabilistic", "greedy": "greedy"}


def test_a_run_that_drafts_in_another_way_than_all_it_could_be_compared_with_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    axes = {"draft": ["lk-eagle3", "ngram"], "drafting": ["probabilistic", "greedy", "deterministic"]}
    path = written(
        tmp_path,
        axes=axes,
        common=COMMON | {"temperature": 1, "k": 3},
        exclude=[
            {"draft": "lk-eagle3", "drafting": "deterministic"},
            {"draft": "ngram", "drafting": "probabilistic"},
            {"draft": "ngram", "drafting": "greedy"},
        ],
    )
    with pytest.raises(UserError, match=r"over lk-eagle3: no runs of it are like zoo-ngram.*: exclude"):
        speceval.sweep(path, out=tmp_path / "out", until=0.1, over="lk-eagle3")
    assert not (tmp_path / "out").exists()


def test_without_the_run_that_it_is_compared_with_a_run_fails_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SimulatedEngine.step

    def failing(self: SimulatedEngine) -> Any:
        if self.settings["draft_sample_method"] == "greedy":
            raise RuntimeError("no luck")
        return honest(self)

    monkeypatch.setattr(SimulatedEngine, "step", failing)
    path = written(tmp_path, common=COMMON | BY_DIFFERENCE)
    done = speceval.sweep(path, out=tmp_path / "out", until=0.3, over="lk-eagle3")
    assert len(done.runs) == 2 and sorted(line.partition(":")[0] for line in done.failed.values()) == [
        "--against " + str(next(name for name in done.failed if "lk" in name and "T0" in name)),
        "RuntimeError",
    ]
