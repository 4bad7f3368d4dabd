"""`speculator.HeadsSpeculator`: which states and tokens it drafts from, and what each draw is keyed by. No engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_patches.drafters import Heads, Medusa

pytestmark = pytest.mark.slow  # vLLM is imported

K, SLOTS, V = 3, 4, 6


class Sums(Heads):
    """Logits that tell what they were made of: the state's number, the newest token and the draft before."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def steps(self, hidden: Tensor, tokens: Tensor, k: int, sample: Any) -> Any:
        for _ in range(k):
            tokens, q = sample(torch.stack([hidden[:, 0], tokens.float()], dim=1))
            yield tokens, q


@pytest.fixture
def speculator() -> Any:
    pytest.importorskip("vllm")
    from vllm_patches.speculator import HeadsSpeculator

    class Recorded(HeadsSpeculator):
        """Draws token 10 * (step + 1) + row, and keeps what it was asked."""

        def sample_draft(self, logits: Tensor, positions: Tensor, places: Tensor, *rest: Any) -> Tensor:
            _, _, step, kept, number = rest
            assert int(step) == number and kept is self.draft_logits
            asked.append((logits.clone(), positions.tolist(), places.tolist()))
            return 10 * (number + 1) + torch.arange(len(logits))

    asked: list[Any] = []
    own: Any = Recorded.__new__(Recorded)
    own.num_speculative_steps, own.max_num_reqs, own.heads, own.asked = K, SLOTS, Sums(), asked
    own.step, own.draft_logits = torch.zeros((), dtype=torch.int64), torch.zeros(SLOTS, K, V)
    own.idx_mapping, own.seeds = torch.zeros(SLOTS, dtype=torch.int64), torch.zeros(SLOTS, dtype=torch.int64)
    own.temperature, own.draft_tokens = torch.zeros(SLOTS), torch.zeros(SLOTS, K, dtype=torch.int64)
    return own


def propose(own: Any, device: str = "cpu", **options: Any) -> Tensor:
    """Two requests, at places 3 and 1: five tokens of which two drafts were rejected, and two that all stand."""
    with torch.device(device):
        batch = SimpleNamespace(
            num_reqs=2,
            idx_mapping=torch.tensor([3, 1]),
            query_start_loc=torch.tensor([0, 5, 7], dtype=torch.int32),
            positions=torch.tensor([20, 21, 22, 23, 24, 8, 9]),
        )
        hidden, last = torch.arange(7.0)[:, None].expand(7, 4), torch.tensor([[0], [51], [52], [53]])
        drafts: Tensor = own.propose(
            *(batch, {}, {}, hidden, None, torch.ones(2), torch.tensor([2, 0], dtype=torch.int32), last, None),
            *(torch.tensor([0.0, 0.5, 0.0, 1.0]), torch.arange(SLOTS)),
            **options,
        )
    return drafts


def test_each_request_drafts_from_the_last_token_that_stands(speculator: Any) -> None:
    assert propose(speculator).tolist() == [[10, 20, 30], [11, 21, 31]]
    states, tokens = zip(*(logits.T.tolist() for logits, _, _ in speculator.asked), strict=True)
    assert states == ([2, 6], [2, 6], [2, 6])
    assert tokens == ([53, 51], [10, 11], [20, 21])


def test_a_draw_is_keyed_by_the_position_before_it_and_the_request_s_place(speculator: Any) -> None:
    """The token after position 22 is at 23; the first draft is at 24 and keyed by 23, as vLLM's drafters do."""
    propose(speculator)
    assert [positions for _, positions, _ in speculator.asked] == [[23, 10], [24, 11], [25, 12]]
    assert [places for *_, places in speculator.asked] == [[3, 1]] * K
    assert speculator.temperature.tolist() == [0.0, 0.5, 0.0, 1.0] and speculator.seeds.tolist() == [0, 1, 2, 3]


def test_fewer_drafts_where_the_scheduler_asks_for_fewer(speculator: Any) -> None:
    assert propose(speculator, num_speculative_tokens=1).tolist() == [[10, -1, -1], [11, -1, -1]]
    assert propose(speculator, num_speculative_tokens=0).tolist() == [[-1] * K] * 2


def test_a_run_for_show_draws_for_no_request(speculator: Any) -> None:
    propose(speculator, dummy_run=True)
    assert [places for *_, places in speculator.asked] == [[-1, -1]] * K


def test_nothing_is_read_back_from_the_device_while_heads_draft(speculator: Any) -> None:
    """On the device "meta", which has no values, whatever the host wanted to read would raise."""
    for name, tensor in vars(speculator).items():
        if isinstance(tensor, Tensor):
            setattr(speculator, name, tensor.to("meta"))
    heads: Any = Medusa.__new__(Medusa)
    heads.config, heads.weights = {"vocab_size": V, "num_hidden_layers": 1}, {}
    for i in range(K):
        heads.weights |= {f"blocks.{i}.layers.0.weight": torch.ones(4, 4), f"lm_heads.{i}.weight": torch.ones(3, 4)}
    heads.weights["token_map"] = torch.arange(3)
    heads.move("meta", torch.float32)
    speculator.heads = heads
    speculator.sample_draft = lambda logits, *_: logits.argmax(-1)
    assert propose(speculator, device="meta").device.type == "meta"


def test_logits_are_kept_in_the_type_of_vllm_s_own_table(speculator: Any) -> None:
    speculator.draft_logits = speculator.draft_logits.to(torch.bfloat16)
    propose(speculator)
    assert {logits.dtype for logits, *_ in speculator.asked} == {torch.bfloat16}
    assert speculator.compute_draft_logits(torch.ones(1), 2).tolist() == [1.0]
