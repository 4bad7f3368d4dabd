"""Figures hold the numbers that they say, in whole files; odd names and thin data give a figure or one line."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from support.calling import caller
from support.records import altered, run_meta

from speceval.errors import NotComparable, UserError
from speceval.estimate import acceptance
from speceval.estimate.statistics import ratio_interval
from speceval.show import plots
from speceval.show.plots import along, conversation, forest, position, style, tau_k
from speceval.store import StoredRun, read_run

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "results" / "reference" / "demo"
HOSTILE = [
    "$x$",
    "a_b^{$ 100 % & #1",
    r"\frac{$$",
    "rocket 🚀",
    "שלום",
    "line\nbreak\x00\x1b[31m",
    "x" * 500,
]

REQUEST = ["suite", "conversation", "seed", "turn"]
STEPS = [*REQUEST, "step", "drafted", "accepted", "committed"]


def make_run(
    requests: dict[tuple[str, int], list[tuple[int, int]]],
    k: int = 3,
    suite: str = "s",
    method: str = "eagle3",
    **spec: Any,
) -> StoredRun:
    """A run of one turn per (conversation, seed), each a list of (drafted, accepted) steps."""
    steps = [
        (suite, name, seed, 1, number, drafted, accepted, 1 + accepted)
        for (name, seed), rows in requests.items()
        for number, (drafted, accepted) in enumerate(rows, start=1)
    ]
    turns = [
        {
            **dict(zip(REQUEST, (suite, name, seed, 1), strict=True)),
            "category": "c",
            "prompt_tokens": 5,
            "cached_tokens": 0,
            "output_tokens": 1 + sum(1 + accepted for _, accepted in rows),
            "finish_reason": "stop",
            "steps": sum(drafted > 0 for drafted, _ in rows),
            "undrafted_steps": sum(drafted == 0 for drafted, _ in rows),
            "padded_steps": 0,
            "drafted": sum(drafted for drafted, _ in rows),
            "accepted": sum(accepted for _, accepted in rows),
            "excess": 0,
        }
        for (name, seed), rows in requests.items()
    ]
    asked = {"draft": "d", "k": k, "suites": (suite,), **spec}
    meta = run_meta(
        **{f"spec__{name}": value for name, value in asked.items()},
        fingerprint__engine__method=method,
        fingerprint__patches=[],
    )
    directory = Path("runs") / asked["draft"].replace("\x00", "")[:60]
    return StoredRun(directory, meta, pd.DataFrame(turns), pd.DataFrame(steps, columns=STEPS))


BY_HAND = {
    ("a", 0): [(3, 2), (0, 0), (3, 3), (2, 1)],
    ("a", 1): [(3, 0)],
    ("b", 0): [(3, 1), (3, 0)],
    ("c", 0): [(3, 3)],
}


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels: the tests look at what is drawn, not at its resolution."""
    monkeypatch.setitem(style.RC, "savefig.dpi", 60)


@pytest.fixture
def by_hand() -> StoredRun:
    return make_run(BY_HAND)


@pytest.fixture(scope="module")
def demo() -> list[StoredRun]:
    return [read_run(DEMO / f"{loss}-eagle3-T1-probabilistic") for loss in ("kl", "lk")]


# ------------------------------------------------------------------------------------------------ tau against K


def test_curve_is_the_mean_of_capped_acceptances(by_hand: StoredRun) -> None:
    values = [row["value"] for row in tau_k.curve(by_hand.steps, 3)]
    assert values == pytest.approx([1 + 5 / 7, 1 + 8 / 7, 1 + 10 / 7])


def test_curve_ends_at_tau_with_its_interval(demo: list[StoredRun]) -> None:
    summary = acceptance.summarise(demo[0].steps, demo[0].turns, 5)
    last = tau_k.curve(demo[0].steps, 5)[-1]
    assert {name: last[name] for name in summary["tau"]} == pytest.approx(summary["tau"])


def test_curve_is_one_plus_the_sum_of_the_positions_rates(demo: list[StoredRun]) -> None:
    rates = acceptance.positions(demo[0].steps, 5)["unconditional"].cumsum()
    assert [row["value"] for row in tau_k.curve(demo[0].steps, 5)] == pytest.approx(list(1 + rates))


def renewal(easy: np.ndarray, k: int, rng: np.random.Generator) -> tuple[int, int]:
    """Steps and Σ (1 + min(A, 2)) along a text whose token t is accepted with .9 where it is easy, else .2."""
    steps = tokens = at = 0
    accepted_here = rng.random(len(easy)) < np.where(easy, 0.9, 0.2)
    while at + k < len(easy):
        block = accepted_here[at : at + k]
        accepted = k if block.all() else int(block.argmin())
        steps, tokens, at = steps + 1, tokens + 1 + min(accepted, 2), at + accepted + 1
    return steps, tokens


@pytest.mark.parametrize(("stretch", "low", "high"), [(1, -5.0, 5.0), (12, -np.inf, -5.0)])
def test_curve_is_exact_for_independent_tokens_and_low_for_easy_stretches(
    stretch: int, low: float, high: float
) -> None:
    """z of the curve at 2 from K=6 against runs at K=2; false alarms below 1e-6. Sticky texts give z near -60."""
    rng = np.random.default_rng(5)
    pairs = []
    for _ in range(400):
        easy = np.repeat(rng.random(600 // stretch) < 0.5, stretch)
        pairs.append((*renewal(easy, 6, rng), *renewal(easy, 2, rng)))
    long_steps, long_tokens, short_steps, short_tokens = np.array(pairs, float).T
    long, short = ratio_interval(long_tokens, long_steps), ratio_interval(short_tokens, short_steps)
    z = (long.value - short.value) / np.hypot(long.se, short.se)
    assert low < z < high


@pytest.mark.parametrize(
    ("method", "rejection", "tells"),
    [
        ("eagle3", "standard", True),
        ("medusa", "standard", True),
        ("eagle3", "block", False),
        ("ngram", "standard", False),
        ("dflash", "standard", False),
    ],
)
def test_only_methods_that_draft_by_position_get_a_curve(method: str, rejection: str, tells: bool) -> None:
    run = make_run(BY_HAND, method=method, rejection=rejection)
    assert tau_k.has_curve(run) is tells
    drawn = plots.draw("tau-k", [run])
    assert ("Curves:" in drawn.caption) is tells
    assert len(drawn.figure.axes[0].lines[0].get_xdata()) == (3 if tells else 1)


def test_runs_of_one_drafter_are_one_curve_with_points() -> None:
    runs = [make_run(BY_HAND, k=k, draft=draft) for draft in ("d", "e") for k in (3, 5, 4)]
    assert tau_k.groups(runs) == [[1, 2, 0], [4, 5, 3]]
    labels = [text.get_text() for text in plots.draw("tau-k", runs).figure.legends[0].get_texts()]
    assert labels == ["d: curve from K=5", "d: separate runs", "e: curve from K=5", "e: separate runs"]


def test_two_drafters_of_one_name_are_no_curve_with_points() -> None:
    """Trained anew in the same place: the request is the same, the weights are not."""
    old, new, longer = make_run(BY_HAND), make_run(BY_HAND), make_run(BY_HAND, k=5)
    new = altered(new, fingerprint__draft__weights="others")
    assert tau_k.groups([old, new, longer]) == [[2, 0], [1]]


def test_stored_table_of_tau_against_k_says_what_the_docs_say() -> None:
    table = pd.read_csv(ROOT / "results" / "statistics" / "tau_k.csv")
    assert set(table["draft"]) == {"lk-eagle3", "kl-medusa"}
    short = table[table["k"] < table["curve_k"]]
    assert (short["curve"] < short["tau"]).all()
    assert short["difference_percent"].between(-5, 0).all()
    assert (table.loc[table["k"] == table["curve_k"], "difference_percent"] == 0).all()


# ------------------------------------------------------------------------------------------------ the other data


def test_a_step_starts_after_all_tokens_of_the_steps_before_in_any_order(by_hand: StoredRun) -> None:
    shuffled = by_hand.steps.sample(frac=1, random_state=0)
    places = along.starts(shuffled).sort_index()
    assert list(places) == [1, 4, 5, 9, 1, 1, 3, 1]


def test_bins_along_the_output_hold_every_step_once(by_hand: StoredRun) -> None:
    rows = along.binned(by_hand.steps, 4, 3)
    assert [(row["start"], row["steps"], row["conversations"]) for row in rows] == [(0, 5, 3), (4, 1, 1), (8, 1, 1)]
    assert [row["value"] for row in rows] == pytest.approx([6 / 5, 3, 1])
    assert rows[0]["low"] is not None and rows[1]["low"] is None


def test_bins_add_up_to_the_pooled_acceptance(demo: list[StoredRun]) -> None:
    rows = along.binned(demo[0].steps, 8, 5)
    summary = acceptance.summarise(demo[0].steps, demo[0].turns, 5)
    assert sum(row["steps"] for row in rows) == summary["steps"]
    assert sum(row["steps"] * row["value"] for row in rows) == pytest.approx(summary["accepted"])


@pytest.mark.parametrize("longest", [0, 1, 12, 13, 64, 100, 2048, 99999])
def test_bins_are_at_most_twelve(longest: int) -> None:
    width = along.bin_width(longest)
    assert width * along.BINS >= longest
    assert width == 1 or (width // 2) * along.BINS < longest


def test_conversations_have_the_tau_of_their_steps(by_hand: StoredRun) -> None:
    assert conversation.taus(by_hand.steps).to_dict() == pytest.approx({"a": 2.5, "b": 1.5, "c": 4.0})


def test_differences_are_within_conversations_that_both_runs_have() -> None:
    other = make_run({key: [(3, 3)] for key in BY_HAND if key[0] != "c"} | {("d", 0): [(3, 0)]})
    found, pooled = conversation.differences(make_run(BY_HAND), other, "s")
    assert found.to_dict() == pytest.approx({"a": 1.5, "b": 2.5})
    assert pooled["value"] == pytest.approx(4 - (6 + 7) / 6)


def test_runs_of_different_protocols_have_no_difference_within_a_conversation() -> None:
    runs = [make_run(BY_HAND, k=3), make_run(BY_HAND, k=4, draft="e")]
    drawn = plots.draw("conversations", runs)
    assert len(drawn.figure.axes) == 1 and "engine.k: 3 -> 4" in drawn.caption
    drawn = plots.draw("conversations", runs, ["engine.k"])
    assert len(drawn.figure.axes) == 2 and "Runs differ in engine.k: 3 -> 4." in drawn.caption


def test_forest_has_a_row_for_each_suite_and_run_with_the_paired_difference(demo: list[StoredRun]) -> None:
    rows = forest.rows([demo[0], demo[1], demo[0]])
    assert [(row["suite"], row["run"]) for row in rows] == [("demo", 1), ("demo", 2)]
    compared = acceptance.compare(demo[0].steps, demo[0].turns, demo[1].steps, demo[1].turns)["relative_percent"]
    assert {name: rows[0][name] for name in compared} == compared
    assert rows[1]["value"] == 0
    figure = plots.draw("forest", demo).figure
    assert [text.get_text() for text in figure.axes[0].texts] == [
        f"{compared['value']:+.1f} [{compared['low']:+.1f}, {compared['high']:+.1f}]".replace("-", "−")
    ]


def test_forest_refuses_runs_that_differ_in_more_than_the_drafter() -> None:
    runs = [make_run(BY_HAND, k=3), make_run(BY_HAND, k=4, draft="e")]
    with pytest.raises(NotComparable, match=r"engine\.k: 3 -> 4"):
        plots.draw("forest", runs)
    assert "Runs differ in engine.k: 3 -> 4." in plots.draw("forest", runs, ["engine.k"]).caption


def test_positions_are_drawn_where_the_summary_has_them(demo: list[StoredRun]) -> None:
    axis = plots.draw("positions", demo[:1]).figure.axes[0]
    rows = acceptance.summarise(demo[0].steps, demo[0].turns, 5)["positions"]
    points, _, (bars,) = axis.containers[0]
    assert list(points.get_ydata()) == pytest.approx([row["unconditional"] for row in rows])
    ends = [(row["unconditional_low"], row["unconditional_high"]) for row in rows]
    assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [pytest.approx(end) for end in ends]


# ------------------------------------------------------------------------------------------------ files


def ink(path: Path) -> float:
    """Share of a PNG that is not white."""
    return float((matplotlib.image.imread(path)[..., :3].min(-1) < 0.9).mean())


@pytest.mark.parametrize("kind", plots.OF_RUNS)
def test_every_kind_writes_png_and_pdf_that_show_something(kind: str, demo: list[StoredRun], tmp_path: Path) -> None:
    drawn = plots.draw(kind, demo)
    assert len(drawn.caption) > 100
    png, pdf = tmp_path / "a.png", tmp_path / "a.pdf"
    plots.save(drawn.figure, png)
    plots.save(drawn.figure, pdf)
    assert ink(png) > 0.005
    content = pdf.read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content, "fonts must be TrueType"
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.pdf"}


def test_the_same_data_give_the_same_bytes(by_hand: StoredRun, tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf", "a.png", "b.png"):
        plots.positions([by_hand], tmp_path / name)
    assert b"CreationDate" not in (tmp_path / "a.pdf").read_bytes()
    for kind in ("pdf", "png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_letters_are_legible_in_a_column_and_the_legend_covers_nothing(demo: list[StoredRun]) -> None:
    figure = plots.draw("positions", demo).figure
    figure.draw_without_rendering()
    (axis,), (legend,) = figure.axes, figure.legends
    assert figure.get_figwidth() * 2.54 == pytest.approx(8.5)
    texts = [axis.xaxis.label, *axis.get_xticklabels(), *legend.get_texts()]
    assert min(text.get_size() for text in texts) >= 7
    assert legend.get_window_extent().y1 <= axis.xaxis.get_tightbbox().y0


def test_a_write_that_fails_leaves_the_old_file(demo: list[StoredRun], tmp_path: Path, monkeypatch: Any) -> None:
    figure = plots.draw("positions", demo).figure
    path = tmp_path / "a.png"
    path.write_text("old")

    def torn(part: Path, **_: Any) -> None:
        part.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_eight_lines_differ_without_colour() -> None:
    looks = [style.series(index) for index in range(len(style.COLOURS))]
    assert len({(look["marker"], str(look["linestyle"])) for look in looks}) == len(looks)


def test_more_lines_than_a_figure_tells_apart_are_refused(by_hand: StoredRun) -> None:
    with pytest.raises(UserError, match="9 runs: a figure tells 8 apart"):
        plots.draw("positions", [by_hand] * 9)


# ------------------------------------------------------------------------------------------------ odd names, thin data


@pytest.mark.parametrize("kind", list(plots.OF_RUNS))
def test_hostile_names_are_drawn_without_a_warning(kind: str, tmp_path: Path) -> None:
    suite, names = " ".join(HOSTILE), HOSTILE[-2:] if kind == "conversations" else HOSTILE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.draw(kind, [make_run(BY_HAND, draft=name, suite=suite) for name in names])
        plots.save(drawn.figure, tmp_path / ("a.pdf" if kind == "positions" else "a.png"))


def test_dollars_are_letters(by_hand: StoredRun) -> None:
    figure = plots.draw("positions", [make_run(BY_HAND, draft="$x_1$")]).figure
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == "$x_1$" and text.get_parse_math() is False


def test_labels_name_what_differs_and_are_never_the_same() -> None:
    runs = [make_run(BY_HAND, k=3), make_run(BY_HAND, k=4), make_run(BY_HAND, k=4, temperature=0.5)]
    assert style.labels(runs) == ["d, T=1, K=3", "d, T=1, K=4", "d, T=0.5, K=4"]
    twins = [make_run(BY_HAND), make_run(BY_HAND)]
    twins[1].directory = Path("runs/again")
    assert style.labels(twins) == ["d (d)", "d (again)"]
    twins[0].directory = Path("old/again")
    assert style.labels(twins) == ["d (old/again)", "d (runs/again)"]


ODD = {
    "one conversation": {("a", 0): [(3, 2), (3, 1)]},
    "one step": {("a", 0): [(3, 0)]},
    "all accepted": {(name, 0): [(3, 3), (3, 3)] for name in "abc"},
    "none accepted": {(name, 0): [(3, 0), (3, 0)] for name in "abc"},
    "short drafts": {(name, 0): [(1, 1), (2, 0), (0, 0)] for name in "abc"},
    "one without drafts": {("a", 0): [(0, 0)], ("b", 0): [(3, 1)], ("c", 0): [(3, 2)]},
}


@pytest.mark.parametrize("kind", list(plots.OF_RUNS))
@pytest.mark.parametrize("requests", list(ODD.values()), ids=list(ODD))
def test_thin_data_give_a_figure_without_a_warning(kind: str, requests: Any) -> None:
    runs = [make_run(requests), make_run(requests, draft="e")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.draw(kind, runs)
        drawn.figure.draw_without_rendering()
    texts = [text.get_text() for axis in drawn.figure.axes for text in axis.texts]
    assert not any("nan" in text for text in [drawn.caption, *texts])


def test_a_run_at_k_1_is_drawn() -> None:
    run = make_run({(name, 0): [(1, 1), (1, 0)] for name in "ab"}, k=1)
    for kind in set(plots.OF_RUNS) - {"forest"}:
        plots.draw(kind, [run]).figure.draw_without_rendering()
    assert [row["value"] for row in tau_k.curve(run.steps, 1)] == [1.5]


@pytest.mark.parametrize("kind", [kind for kind in plots.OF_RUNS if kind != "forest"])
def test_a_run_without_drafts_is_one_line(kind: str) -> None:
    with pytest.raises(UserError, match="no step of s has drafts"):
        plots.draw(kind, [make_run({("a", 0): [(0, 0), (0, 0)]})])


def test_captions_tell_of_few_conversations_unfinished_runs_and_problems(by_hand: StoredRun) -> None:
    by_hand = altered(by_hand, status="running", problems=["x", "y"])
    caption = plots.draw("positions", [by_hand]).caption
    assert "Only 3 conversations" in caption and "is unfinished" in caption and "has 2 problems" in caption


def test_suites_get_a_panel_each() -> None:
    run, second = make_run(BY_HAND), make_run(BY_HAND, suite="t")
    run.meta.fingerprint.suites["t"] = run.meta.fingerprint.suites["s"]
    run.turns, run.steps = pd.concat([run.turns, second.turns]), pd.concat([run.steps, second.steps])
    assert [axis.get_title(loc="left") for axis in plots.draw("positions", [run]).figure.axes] == ["s", "t"]
    with pytest.raises(UserError, match="no suite in common"):
        plots.draw("positions", [make_run(BY_HAND), second])


@pytest.mark.parametrize("kind", list(plots.OF_RUNS))
def test_no_estimate_or_interval_lies_outside_its_panel(kind: str) -> None:
    """The second suite and the second run have the larger values."""
    easy = {(name, 0): [(3, accepted), (3, 3), (3, 3)] for accepted, name in enumerate("abcd")}
    hard = {(name, 0): [(3, accepted), (3, 0), (3, 0)] for accepted, name in enumerate("abcd")}
    runs = []
    for draft, requests in (("d", hard), ("e", easy)):
        run, second = make_run(hard, draft=draft), make_run(requests, suite="t")
        run.meta.fingerprint.suites["t"] = run.meta.fingerprint.suites["s"]
        run.turns, run.steps = pd.concat([run.turns, second.turns]), pd.concat([run.steps, second.steps])
        runs.append(run)
    figure = plots.draw(kind, runs).figure
    for axis in figure.axes:
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        paths = [line.get_xydata() for line in axis.lines if line.get_transform() == axis.transData]
        paths += [path.vertices for collection in axis.collections for path in collection.get_paths()]
        points = np.concatenate(paths)
        points = points[np.isfinite(points).all(-1)]
        assert points[:, 0].min() >= left and points[:, 0].max() <= right
        assert points[:, 1].min() >= bottom and points[:, 1].max() <= top


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    return partial(caller(monkeypatch, capfd), "plot")


@pytest.mark.parametrize("count", [1, 2])
def test_command_writes_all_figures_and_prints_their_captions(
    call: Any, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_text("figure"))
    code, out, _ = call(*[DEMO / f"{loss}-eagle3-T0-greedy" for loss in ("kl", "lk")][:count], "-o", tmp_path)
    kinds = [kind for kind in plots.OF_RUNS if kind != "forest" or count > 1]
    assert code == 0 and "left out" not in out
    assert {path.name for path in tmp_path.iterdir()} == {f"{kind}{end}" for kind in kinds for end in (".png", ".pdf")}
    assert out.count("95 % intervals") == len(kinds) and f"{tmp_path / 'tau-k.png'}, " in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 4, "which run?"),
        (["missing"], 4, "no run here"),
        (["RUN", "--kind", "forest"], 4, "two or more"),
        (["RUN", "--kind", "positions", "-o", "a.jpg"], 4, "written as .png or .pdf"),
        (["RUN", "-o", "a.png"], 4, "do not fit one file"),
        (["RUN", "OTHER", "--kind", "forest"], 3, "--allow"),
        (["RUN", "RUN2", "--kind", "along", "--allow", "seeds"], 4, "--allow: has no meaning"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(
    call: Any, arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"RUN": "kl-eagle3-T0-greedy", "RUN2": "lk-eagle3-T0-greedy", "OTHER": "lk-eagle3-T1-greedy"}
    found, out, err = call(*(DEMO / named[word] if word in named else word for word in arguments))
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1 and says in err
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_the_command_is_documented() -> None:
    page = (ROOT / "docs" / "measure" / "make-figures.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) >= set(plots.OF_RUNS)


def test_positions_are_written_by_the_function_that_the_demo_calls(demo: list[StoredRun], tmp_path: Path) -> None:
    plots.positions(demo, tmp_path / "figure.png")
    assert ink(tmp_path / "figure.png") > 0.005
    assert position.draw is plots.OF_RUNS["positions"]
