"""speceval: measure speculative-decoding acceptance on vLLM."""

__version__ = "0.1.0"
