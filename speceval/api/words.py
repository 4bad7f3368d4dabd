"""Errors in the words of the caller: below the API they name flags of the command line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from speceval.errors import UserError
from speceval.protocol import RunSpec, flag

PARAMETERS = {flag(name).name: name for name in RunSpec.model_fields}
"""Flag -> the parameter that asks for the same."""


@contextmanager
def errors_by_parameter(names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Have errors name parameters where they name flags; `names`: of flags that this function calls otherwise.

    A notebook without widgets does not get tqdm's warning about it.
    """
    parameters = PARAMETERS | dict(names or {})

    def parameter(match: re.Match[str]) -> str:
        return parameters.get(match[0], match[0].removeprefix("--").replace("-", "_"))

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            yield
    except UserError as error:
        raise type(error)(re.sub(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", parameter, str(error))) from None
