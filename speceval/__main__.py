"""`python -m speceval`."""

from speceval.cli import main

if __name__ == "__main__":
    main()
