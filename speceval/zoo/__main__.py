"""`python -m speceval.zoo`: build everything and print where it is."""

from __future__ import annotations

import sys

from speceval.errors import UserError
from speceval.zoo import DRAFTERS, ensure


def main() -> int:
    """Build the whole zoo; returns the exit code."""
    try:
        paths = ensure(list(DRAFTERS))
    except UserError as error:
        print(error, file=sys.stderr)
        return 4
    for name, path in paths.items():
        print(f"{name}\t{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
