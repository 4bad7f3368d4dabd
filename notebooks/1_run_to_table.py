# %% [markdown]
# # 1. From a run to a table
#
# A speculative decoder lets a small *drafter* guess up to $K$ tokens and lets the *target* check them in one forward
# pass, a *verify step*. If the step accepts $A$ of the drafts, it emits $1 + A$ tokens. What a drafter is worth is
# the mean of that, the acceptance length $\tau$. This notebook takes a stored run apart: what is kept of each step,
# how it becomes $\tau$, how large the error is, and how two runs become a line in a paper.
#
# The runs are those of `speceval demo`: a tiny target (the zoo's) with two EAGLE-3 drafters, one trained with KL, one
# with LK Losses. `speceval run` writes such a directory for any other target.

# %%
# %matplotlib inline
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib import pyplot
from matplotlib.figure import Figure

from speceval import compare, plot, ratio, read_run, style, table, validate

ROOT = Path() if Path("results").is_dir() else Path("..")
DEMO = ROOT / "results" / "reference" / "demo"
pyplot.rcParams.update(style.RC | {"figure.dpi": 110})

kl = read_run(DEMO / "kl-eagle3-T1-probabilistic")
lk = read_run(DEMO / "lk-eagle3-T1-probabilistic")
asked = ("target", "draft", "k", "temperature", "drafting", "max_tokens")
pd.DataFrame([{name: getattr(run.meta.spec, name) for name in asked} for run in (kl, lk)])

# %% [markdown]
# `run.json` holds this request, what the engine made of it, and every version and hash that could move the number.
# Two tables hold the rest. `turns` has a row for each request, `steps` one for each verify step:

# %%
STEP = ["conversation", "seed", "step", "drafted", "accepted", "committed"]
lk.steps[STEP].head(8)

# %% [markdown]
# `committed` is $1 + A$ except in the last step of a request, where tokens past the end of the answer fall away.
# Before anything is computed the books are checked: counts of steps, of requests and of the engine's own counters
# must agree to the last token. An empty list says that they do.

# %%
K = lk.meta.spec.k
validate(lk)

# %% [markdown]
# ## By hand
#
# $\tau$ pools over steps, and splits by position. With $u_j$ the share of steps that accept draft $j$,
#
# $$\tau = 1 + \frac{\sum A}{\#\text{steps}} = 1 + \sum_{j=1}^{K} u_j .$$

# %%
accepted = lk.steps["accepted"].to_numpy()
rates = np.array([(accepted >= j).mean() for j in range(1, K + 1)])
by_hand = {
    "1 + mean of A": 1 + accepted.mean(),
    "1 + Σ u_j": 1 + rates.sum(),
    "run.tau()": lk.tau().value,
}
pd.Series(by_hand).round(6)

# %% [markdown]
# ## The error
#
# There are tens of thousands of steps, so a standard error over steps looks tiny. It is wrong: the steps of one
# prompt are alike, because some prompts are easier to guess than others and every seed of a prompt shares that. The
# unit is the *conversation*: draw each prompt's own $\tau$, and the spread is plain.

# %%
totals = lk.counts()["demo"]  # of each conversation: steps, drafted, accepted tokens …
own = (1 + totals["accepted"] / totals["steps"]).sort_values()
naive = 1.96 * accepted.std() / np.sqrt(len(accepted))
clustered = ratio(totals["steps"] + totals["accepted"], totals["steps"], bounds=(1, K + 1))

prompts = Figure(figsize=(style.PAGE, 2.4), layout="constrained")
axis = prompts.subplots()
tau = clustered.value
axis.axhspan(clustered.low, clustered.high, color=style.COLOURS[4], alpha=2 * style.BAND, label="95 %, by conversation")
axis.axhspan(tau - naive, tau + naive, color="0.3", label="95 %, as if steps were independent", linewidth=0)
category = lk.turns.drop_duplicates("conversation").set_index("conversation")["category"]
for number, (name, rows) in enumerate(own.groupby(category)):
    look = style.series(number) | {"linestyle": "none"}
    axis.plot(own.index.get_indexer(rows.index), rows, label=name, **look)
axis.set(xlabel="prompt, in order of its tau", ylabel="tau", xticks=[])
axis.legend(loc="upper left", ncols=2)
prompts

# %% [markdown]
# The wide band is what `speceval` prints. It covers new prompts like these and new seeds; it is lopsided because the
# prompts are. More seeds of the same prompts would not narrow it much: the table splits its standard error into the
# part of the prompts and the part of the sampling.

# %%
summary = lk.summary()
spread = summary["variance"]
pd.Series(
    {
        "tau": tau,
        "low": clustered.low,
        "high": clustered.high,
        "standard error by conversation": clustered.se,
        "of it by sampling alone": spread["se_samples"],
        "standard error as if steps were independent": naive / 1.96,
        "conversations": summary["conversations"],
        "steps": summary["steps"],
    },
).round(4)

# %% [markdown]
# ## Two runs
#
# Both drafters answered the same prompts, so they are compared prompt by prompt. What a prompt has in common in both
# runs cancels, and the difference is known far better than either $\tau$: the intervals of the two overlap widely,
# that of the difference leaves 0 out.

# %%
found = compare(kl, lk)[0]  # a row for each suite and run: there is one
parts = {
    "tau of KL": found.tau_a,
    "tau of LK": found.tau_b,
    "difference": found.difference,
    "difference, %": found.relative_percent,
}
pd.DataFrame({name: vars(estimate) for name, estimate in parts.items()}).T.astype(float).round(3)

# %%
pairs = plot([kl, lk], kind="conversations")
pairs.figure

# %% [markdown]
# Where does the gain come from? By position, with bars that are again clustered by conversation:

# %%
positions = plot([kl, lk], kind="positions")
pd.DataFrame(found.positions)[["position", "a", "b", "p_adjusted"]].round(4)

# %%
positions.figure

# %% [markdown]
# ## A table
#
# `speceval table` and, in Python, `speceval.table` give the same: here the layout of the paper's table of
# architectures, for the two runs. Bold is the best and every one that is not significantly worse. Markdown, LaTeX,
# HTML, CSV and JSON hold the same numbers.

# %%
architectures = table([kl, lk], layout="paper-arch")
Markdown(architectures.text("md"))

# %%
print("\n".join(architectures.text("latex").splitlines()[:16]))

# %% [markdown]
# Next: [what sampled and greedy drafts measure](2_sampled_and_greedy.ipynb). The formulas are in
# [docs/trust/how-sure.md](../docs/trust/how-sure.md).
