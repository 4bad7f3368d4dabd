# %% [markdown]
# # 2. Sampled against greedy drafts
#
# At a temperature above 0 a drafter can propose in two ways. It can *sample*, $d \sim q$, and the verifier accepts
# with probability $\min(1, p(d)/q(d))$. Or it can propose its argmax $m = \arg\max q$, and the verifier, which then
# sees a drafter that is sure, accepts with $p(m)$. Both leave the target's distribution $p$ as it is. But they are
# accepted with different probabilities:
#
# $$\alpha_\text{sampled} = \sum_x q(x) \min\Big(1, \frac{p(x)}{q(x)}\Big) = \sum_x \min(p(x), q(x)), \qquad
# \alpha_\text{greedy} = p(m) .$$
#
# vLLM drafts greedily unless told otherwise. Which number is higher, and when?
#
# ## The rule
#
# Take the argmax out of the sum: $\alpha_\text{sampled} = \min(p(m), q(m)) + \sum_{x \ne m} \min(p(x), q(x))$. So
#
# $$\alpha_\text{greedy} > \alpha_\text{sampled} \iff p(m) - q(m) > \sum_{x \ne m} \min(p(x), q(x)) .$$
#
# Greedy drafts win only where the drafter is *less sure of its own favourite than the target is*, by more than all
# that the two share elsewhere. If $q(m) \ge p(m)$, sampled drafts are never behind. If $q = p$, sampled drafts are
# always accepted and greedy ones with $\max p$.

# %%
# %matplotlib inline
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure
from scipy.special import softmax

from speceval import Run, compare, ratio_difference, read_run, style

ROOT = Path() if Path("results").is_dir() else Path("..")
DEMO = ROOT / "results" / "reference" / "demo"
pyplot.rcParams.update(style.RC | {"figure.dpi": 110})


def rates(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chance to accept a sampled and a greedy draft; p and q have shape (..., V)."""
    best = q.argmax(-1)[..., None]
    return np.minimum(p, q).sum(-1), np.take_along_axis(p, best, -1)[..., 0]


EXAMPLES = {
    "q = p, flat": ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]),
    "q = p, peaked": ([0.90, 0.06, 0.03, 0.01], [0.90, 0.06, 0.03, 0.01]),
    "right token, drafter less sure": ([0.90, 0.04, 0.03, 0.03], [0.55, 0.15, 0.15, 0.15]),
    "right token, drafter too sure": ([0.40, 0.30, 0.20, 0.10], [0.70, 0.20, 0.07, 0.03]),
    "wrong token": ([0.60, 0.30, 0.05, 0.05], [0.30, 0.60, 0.05, 0.05]),
}
toy = {}
for name, (p, q) in EXAMPLES.items():
    sampled, greedy = rates(np.array(p), np.array(q))
    toy[name] = {"p": p, "q": q, "Σ min(p, q)": sampled, "p(argmax q)": greedy}
pd.DataFrame(toy).T

# %% [markdown]
# ## A map
#
# Now many positions at once. The target's logits over 200 tokens are normal, $z$; the drafter's are $z$ with noise.
# The spread of each one's logits makes it sharp or flat. Each point of the map is a mean over 400 positions.

# %%
rng = np.random.default_rng(2)
z = rng.standard_normal((400, 200))
noisy = 0.9 * z + np.sqrt(1 - 0.9**2) * rng.standard_normal(z.shape)  # correlation 0.9 with the target's
sharpness = np.linspace(0.5, 8, 26)
grid = np.array(
    [[np.mean(rates(softmax(s * z, -1), softmax(r * noisy, -1)), -1) for s in sharpness] for r in sharpness]
)
difference = grid[..., 0] - grid[..., 1]

chart = Figure(figsize=(style.PAGE, 2.9), layout="constrained")
left, right = chart.subplots(1, 2)
colours = left.pcolormesh(sharpness, sharpness, difference, cmap="RdBu", vmin=-0.9, vmax=0.9, rasterized=True)
left.contour(sharpness, sharpness, difference, levels=[0], colors="black", linewidths=1)
left.plot(sharpness, sharpness, color="0.4", linestyle=":", linewidth=0.8)
left.set(xlabel="spread of the target's logits (sharper to the right)", ylabel="spread of the drafter's logits")
chart.colorbar(colours, ax=left, label="sampled - greedy")
for number, (label, r) in enumerate({"as sharp": 1.0, "half as sharp": 0.5}.items()):
    both = np.array([np.mean(rates(softmax(s * z, -1), softmax(r * s * noisy, -1)), -1) for s in sharpness])
    right.plot(sharpness, both[:, 0], color=style.COLOURS[number], label=f"sampled, drafter {label}")
right.plot(sharpness, both[:, 1], color="black", linestyle="--", label="greedy, either drafter")
right.set(xlabel="spread of the target's logits", ylabel="acceptance", ylim=(0, 1))
right.legend(loc="lower right")
chart

# %% [markdown]
# Left: blue, sampled drafts are ahead; red, greedy ones; the line is a tie. Greedy drafts win in the corner of sharp
# targets and flat drafters. On the dotted diagonal, where the drafter is as sharp as the target, sampled drafts are
# ahead, most at flat targets. Right: both rates as the two sharpen together, which is what a lower temperature does.
# The greedy rate does not depend on the drafter's sharpness at all: it cannot tell a good $q$ from another one with
# the same argmax.
#
# ## Stored runs
#
# The demo measured both ways at T=1 on the same prompts. Protocols that differ in the drafting mode are refused by
# `compare`; here the difference is the question, so it is allowed by name.

# %%
runs = {
    (drafter, mode): read_run(DEMO / f"{drafter}-T1-{mode}")
    for drafter in ("kl-eagle3", "lk-eagle3")
    for mode in ("probabilistic", "greedy")
}
rows = {}
for drafter in ("kl-eagle3", "lk-eagle3"):
    pair = [runs[drafter, mode] for mode in ("probabilistic", "greedy")]
    found = compare(*pair, allow=["drafting", "seeds"])[0]
    rows[drafter] = {
        "tau sampled": found.tau_a.value,
        "tau greedy": found.tau_b.value,
        **{f"greedy - sampled, {end}": getattr(found.difference, end) for end in ("value", "low", "high")},
    }
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# Intervals are 95 %, paired by prompt. On this target greedy drafts lose by far.
#
# One caution: both modes give texts with the same law, but a run with longer steps starts its steps at other places.
# The *first* step of an answer starts at the same place in both, after contexts with one law. There the share of
# accepted first drafts is a clean estimate of the mean of $\sum \min(p, q)$ and of $p(\arg\max q)$ over the same
# contexts:


# %%
def first_drafts(run: Run) -> pd.DataFrame:
    """Per conversation: first steps, and how many of them accept their first draft."""
    first = run.steps[(run.steps["step"] == 1) & (run.steps["drafted"] > 0)]
    accepts = (first["accepted"] >= 1).groupby(first["conversation"])
    return pd.DataFrame({"accepted": accepts.sum(), "steps": accepts.size()})


rows = {}
for drafter in ("kl-eagle3", "lk-eagle3"):
    a, b = first_drafts(runs[drafter, "probabilistic"]).align(first_drafts(runs[drafter, "greedy"]), join="inner")
    change = ratio_difference(a["accepted"], a["steps"], b["accepted"], b["steps"])
    rows[drafter] = {
        "mean Σ min(p, q)": a["accepted"].sum() / a["steps"].sum(),
        "mean p(argmax q)": b["accepted"].sum() / b["steps"].sum(),
        **{f"greedy - sampled, {end}": getattr(change, end) for end in ("value", "low", "high")},
    }
pd.DataFrame(rows).T.astype(float).round(3)

# %% [markdown]
# ## Prompt by prompt
#
# The rule says that sharp targets favour greedy drafts. The zoo's prompts differ: some of the sums in words are
# easy to continue, chat is not.

# %%
scatter = Figure(figsize=(style.PAGE, 2.9), layout="constrained")
gains = {}
for axis, drafter in zip(scatter.subplots(1, 2, sharex=True, sharey=True), ("kl-eagle3", "lk-eagle3"), strict=True):
    totals = [runs[drafter, mode].counts()["demo"] for mode in ("probabilistic", "greedy")]
    sampled, greedy = (1 + part["accepted"] / part["steps"] for part in totals)
    first_turns = runs[drafter, "greedy"].turns.drop_duplicates("conversation").set_index("conversation")
    for number, (category, members) in enumerate(first_turns.groupby("category")):
        look = style.series(number) | {"linestyle": "none"}
        axis.plot(sampled[members.index], greedy[members.index], label=category, **look)
        ratio = ((sampled - 1) / (greedy - 1))[members.index]
        gains[drafter, category] = {"least": ratio.min(), "mean": ratio.mean(), "most": ratio.max()}
    axis.axline((1, 1), slope=1, color="0.5", linewidth=0.8)
    axis.set(title=drafter, xlabel="tau of a prompt, sampled drafts", xlim=(1, 4.5), ylim=(1, 4.5))
scatter.axes[0].set_ylabel("tau, greedy drafts")
scatter.axes[0].legend(loc="upper left")
scatter

# %%
pd.DataFrame(gains).T.rename_axis(["drafter", "accepted, sampled over greedy"]).round(2)

# %% [markdown]
# Every prompt lies below the line, and the sums lie nearest to it in proportion. A target that is surer of its tokens
# than one with 0.4 million parameters should show a smaller gap, and by the rule it can turn around. It has to be
# measured.
#
# ## What follows for comparing drafters
#
# LK Losses train $\sum \min(p, q)$. Does a greedy measurement see it?

# %%
rows = {}
for mode in ("probabilistic", "greedy"):
    found = compare(runs["kl-eagle3", mode], runs["lk-eagle3", mode])[0]
    rows[mode] = {f"Δ% of LK over KL, {end}": getattr(found.relative_percent, end) for end in ("value", "low", "high")}
    rows[mode] |= {"p": found.p_value, "samples": found.samples}
pd.DataFrame(rows).T.round(4)

# %% [markdown]
# With sampled drafts the gain is plain. With greedy ones the two drafters cannot be told apart: a better $q$ behind
# the same argmax does not count there, and there are fewer samples too. So a table must say which of the two it
# shows, and never mix them. `speceval` records the drafting mode in each run's protocol and refuses to compare across
# it.

# %% [markdown]
# ## The same on a real model
#
# SmolLM2-135M, vocabulary 49,152, along the answers that it gave to the benchmarks at T=1 (`results/reference/smollm2`,
# [the study](../docs/study.md)): the same drafters, the same text, drafts once drawn from $q$ and once $\arg\max q$.
# Along one text nothing is left to chance but the text itself, so that the
# two ways differ by what they are and not by where their steps happened to start.

# %%
STUDY = ROOT / "results" / "reference" / "smollm2"
SUITES = {"mt_bench": "MT-Bench", "humaneval": "HumanEval", "gsm8k": "GSM8K"}


def along(drafter: str, k: int = 5) -> pd.DataFrame:
    """Expected steps and committed tokens of each conversation at K = k, by suite and conversation."""
    tables = pd.concat([pd.read_parquet(STUDY / text / f"{drafter}.parquet") for text in ("T1", "T1-gsm8k")])
    whole = tables[(tables["part"] == 0) & (tables["k"] == k)].astype({"suite": str, "conversation": str})
    return whole.groupby(["suite", "conversation"], sort=False)[["committed", "steps"]].sum()


measured = along("lk-eagle3-greedy").index.unique("suite")
SUITES = {suite: title for suite, title in SUITES.items() if suite in measured}
rows = {}
for suite, title in SUITES.items():
    for drafter in ("kl-eagle3", "lk-eagle3"):
        sampled, greedy = (along(name).xs(suite) for name in (drafter, f"{drafter}-greedy"))
        change = ratio_difference(sampled["committed"], sampled["steps"], greedy["committed"], greedy["steps"])
        rows[title, drafter] = {
            "tau sampled": sampled["committed"].sum() / sampled["steps"].sum(),
            "tau greedy": greedy["committed"].sum() / greedy["steps"].sum(),
            **{f"greedy - sampled, {end}": getattr(change, end) for end in ("value", "low", "high")},
        }
real = pd.DataFrame(rows).T.astype(float)
real.round(3)

# %% [markdown]
# Conversation by conversation, with the LK-λ drafter:

# %%
panels = Figure(figsize=(style.PAGE, 2.6), layout="constrained")
both = [along(name) for name in ("lk-eagle3", "lk-eagle3-greedy")]
axes = panels.subplots(1, len(SUITES), sharex=True, sharey=True, squeeze=False)[0]
for axis, (suite, title) in zip(axes, SUITES.items(), strict=True):
    sampled, greedy = (of.xs(suite)["committed"] / of.xs(suite)["steps"] for of in both)
    axis.plot(sampled, greedy, "o", markersize=2.5, alpha=0.6, color=style.COLOURS[0])
    axis.axline((1, 1), slope=1, color="0.5", linewidth=0.8)
    axis.set(title=title, xlabel="tau, sampled drafts")
panels.axes[0].set_ylabel("tau, greedy drafts")
panels

# %% [markdown]
# And what the loss is worth with each of them:

# %%
rows = {}
for suite, title in SUITES.items():
    for mode, ending in (("sampled", ""), ("greedy", "-greedy")):
        kl, lk = (along(f"{loss}-eagle3{ending}").xs(suite) for loss in ("kl", "lk"))
        change = ratio_difference(kl["committed"], kl["steps"], lk["committed"], lk["steps"])
        rows[title, mode] = {f"LK-λ - KL, {end}": getattr(change, end) for end in ("value", "low", "high")}
worth = pd.DataFrame(rows).T.astype(float)
worth.round(4)

# %% [markdown]
# As in the zoo: greedy drafts are accepted less at T=1, least behind in code, and no gain of LK-λ is seen with them.
