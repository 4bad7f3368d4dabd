"""Captured texts: what the target said along a run's texts, kept so that drafters are measured without it.

write     one pass of the target over the texts, into a folder
folder    what such a folder holds, and reading it
storage   states in fewer bits
law       p and q of given tokens: temperature, top-k, top-p
evaluate  kept_j of every place of every text, for any drafter, and the numbers of it
replay    an ordinary replayed run made of that
"""
