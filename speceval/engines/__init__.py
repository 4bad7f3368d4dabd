"""Engines generate tokens and report their verify steps; `base` says what is asked of them. Only `vllm` knows vLLM."""
