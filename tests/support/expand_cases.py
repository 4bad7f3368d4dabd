"""Random cases for the expansion of request parameters, checked against plain Python lists.

`python expand_cases.py` prints how many cases vLLM's own CPU function gets wrong, by dtype.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64]
Case = tuple[list[float], list[int], int, int, torch.dtype]


def cases(count: int = 300, seed: int = 0) -> Iterator[Case]:
    """(values, draft rows per request, replace_from, replace_to, dtype); every third value is 0, i.e. greedy."""
    draw = random.Random(seed)
    for index in range(count):
        requests = draw.randint(1, 40)
        values = [draw.choice([0, draw.randint(1, 60), draw.randint(1, 63) / 64]) for _ in range(requests)]
        rows = [draw.randint(0, 7) for _ in range(requests - 1)] + [draw.randint(1, 7)]
        dtype = DTYPES[index % len(DTYPES)]
        if not dtype.is_floating_point:
            values = [round(value) for value in values]
        yield values, rows, *draw.choice([(0, 0), (0, 1), (7, 3)]), dtype


def wrong(expand: Callable[..., torch.Tensor]) -> dict[str, int]:
    """dtype -> number of cases in which `expand` differs from the reference in a value, the shape or the dtype."""
    found = {str(dtype): 0 for dtype in DTYPES}
    for values, rows, old, new, dtype in cases():
        replaced = [new if value == old else value for value in values]
        reference = [value for value, count in zip(replaced, rows, strict=True) for _ in range(count)]
        cumulative = torch.tensor(rows).cumsum(0).to(torch.int32)
        # What the allocator hands out next must not be the right answer of an earlier call.
        garbage = torch.full((len(reference),), 99, dtype=dtype)
        del garbage
        result = expand(torch.tensor(values, dtype=dtype), cumulative, len(reference), old, new)
        right = result.dtype == dtype and result.tolist() == torch.tensor(reference, dtype=dtype).tolist()
        found[str(dtype)] += not right
    return found


def stock() -> Any:
    """vLLM's function as the CPU platform runs it."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    return rejection_sampler.expand_batch_to_tokens


if __name__ == "__main__":
    print(json.dumps(wrong(stock())))
