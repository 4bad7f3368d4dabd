"""Estimators: frames in, numbers out. Pure; imports neither torch nor vLLM."""
