# %% [markdown]
# # 6. Exact tau while a drafter learns
#
# A loss is a stand-in. What a drafter is trained for is its acceptance length $\tau$ on prompts that people send, and
# that is usually measured once, at the end, with an engine. A capture (`speceval capture`) makes it a number that a
# training loop can print: it holds what the target said along a run's texts, so that $\tau$ of any drafter follows
# from a few passes of the drafter, with every chance but the texts' own integrated out
# ([how](../docs/measure/without-the-target.md)).
#
# Here a small EAGLE-3 learns twice, under $KL(p\,\|\,q)$ and under $LK_\lambda$ (LK Losses, arXiv 2602.23881), from the
# same start, with the same batches and the same 100 steps of KL before the losses part. The capture that measures it
# was never trained on.

# %%
# %matplotlib inline
from pathlib import Path

import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure

from speceval import evaluate, read_capture, style

ROOT = Path() if Path("results").is_dir() else Path("..")
pyplot.rcParams.update(style.RC | {"figure.dpi": 110})

capture = read_capture(ROOT / "results" / "reference" / "capture")
capture

# %% [markdown]
# ## What a loop asks
#
# `evaluate` takes any callable. It gets the text's tokens, what the target said at each of them, and the places after
# which drafting starts; it gives logits. The simplest drafter there is has no weights: it says again what the target
# said of the token before.


# %%
def again(tokens, states, places):
    """Logits [K, batch, places, vocabulary]: the target's own of one token earlier, for every draft position."""
    index = places[..., None].expand(-1, -1, states.final.shape[-1])
    return [states.final.gather(1, index) @ states.output.T] * 3


found = evaluate(again, capture, k=3, overlap=True)
pd.DataFrame(
    {"P(A ≥ j)": [rate.value for rate in found.positions()], "Σ min(p, q)": found.alpha, "KL(p‖q)": found.kl},
    index=pd.RangeIndex(1, 4, name="position"),
).round(2)

# %% [markdown]
# $\tau$ of that is what a drafter has to beat:

# %%
f"{found.tau():2}"

# %% [markdown]
# ## Two losses
#
# In the loop itself one line is added, `evaluate(drafter, capture, k=5, overlap=True)`, every ten steps
# (`scripts/loss_steps.py`; two minutes on a laptop, so its numbers are stored).

# %%
steps = pd.read_csv(ROOT / "results" / "statistics" / "loss_steps.csv")
PARTED = 100  # steps of KL that both share

curves = Figure(figsize=(style.PAGE, 2.6), layout="constrained")
panels = {"tau": "exact τ", "alpha_1": "Σ min(p, q), position 1", "kl_1": "KL(p‖q), position 1"}
for axis, (column, title) in zip(curves.subplots(1, 3), panels.items(), strict=True):
    for number, (loss, rows) in enumerate(steps[steps["step"] >= 40].groupby("loss", sort=False)):
        axis.plot(rows["step"], rows[column], label=loss, color=style.COLOURS[number])
    axis.axvline(PARTED, color="grey", linewidth=0.6)
    axis.set(title=title, xlabel="step")
curves.axes[0].legend(loc="lower right")
curves

# %%
wide = steps.pivot_table(index="step", columns="loss", values=["tau", "kl_1"])
table = pd.DataFrame(
    {
        "Δτ, LK-λ − KL": wide["tau"]["LK-λ"] - wide["tau"]["KL"],
        "ΔKL, LK-λ − KL": wide["kl_1"]["LK-λ"] - wide["kl_1"]["KL"],
    }
)
table.loc[[100, 110, 150, 200, 250, 300]].round(3)

# %% [markdown]
# As soon as the losses part, $LK_\lambda$ accepts more, and its KL is worse from then on to the end: the two are not
# the same aim, and a curve of KL would have chosen the wrong drafter. The gap is widest after the first steps and
# narrows as KL catches up; at the end it is about one per cent of $\tau$.
#
# There is no noise in the curves that another seed of the *measurement* would change: the same weights on these texts
# give the same number each time. What is not in them is how much another *training* would differ, and other prompts:

# %%
last = steps[steps["step"] == steps["step"].max()].set_index("loss")
last[["tau", "low", "high"]].round(2)  # intervals for prompts like these 24, each for itself
