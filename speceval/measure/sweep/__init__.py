"""Many runs from one file: targets × drafters × temperatures …, each target loaded once."""

from speceval.measure.sweep.cells import Cell, Sweep, prepare_sweep
from speceval.measure.sweep.execute import Outcome, execute, execute_on
from speceval.measure.sweep.file import SweepFile, names, read_sweep_file

__all__ = [
    "Cell",
    "Outcome",
    "Sweep",
    "SweepFile",
    "execute",
    "execute_on",
    "names",
    "prepare_sweep",
    "read_sweep_file",
]
