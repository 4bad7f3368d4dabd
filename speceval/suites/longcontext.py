"""Rows of the suite `longcontext`: long texts that come with Python, and a question about each.

The text is Python's own reference (`pydoc_data.topics`, PSF licence), so that nothing has to be fetched. It differs
between versions of Python, and the dataset's hash with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LENGTHS = (1, 2, 4, 8, 16, 32)
"""Thousands of tokens, about: CHARACTERS to a token."""
CHARACTERS = 4
EACH = 8
"""Texts of each length."""
QUESTION = (
    "\n\nThe text above is a part of a reference manual. Explain in your own words what it says, and give an example."
)


def rows() -> Iterator[dict[str, Any]]:
    """A conversation for each text; its category is the length, "1k" to "32k"."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    for thousands in LENGTHS:
        size = thousands * 1000 * CHARACTERS
        stride = (len(text) - size) // EACH
        for i in range(EACH):
            yield {
                "id": f"{thousands}k-{i}",
                "category": f"{thousands}k",
                "turns": [text[i * stride : i * stride + size] + QUESTION],
            }
