"""vLLM in this process. The only package that imports vLLM."""
