"""Drafters as plain torch modules that read published checkpoints, all places of many texts at once.

A drafter is called with `tokens` [batch, time], `states`, what the target said at each of them, and `places`
[batch, n]: tokens after which drafting starts. It gives, for draft positions 1, 2, …, its logits [batch, n, D] for
token `places + position + 1`, having read the text's own tokens up to the one before: what it sees in a verify step
that has accepted so far. `draft_ids` [D] are the target's ids of what it can draft; without it they are 0 … D - 1.

docs/measure/without-the-target.md derives what is made of these.
"""
