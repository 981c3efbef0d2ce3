"""Structure is run on numbers that stand for channels, which tells where the channels go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fxreduce.graph.capture import capture
from fxreduce.graph.structure import Carried, carry, is_structural
from fxreduce.operators.affine import Refusal

Forward = Callable[[Tensor], Tensor]


class Function(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def carried(forward: Forward, *shape: int, rank: int = 2) -> Carried | Refusal:
    """Where the channels of an image of that shape lie behind the function, all of whose calls are
    structural."""
    graph_module = capture(Function(forward).eval(), torch.zeros(shape))
    path = [n for n in graph_module.graph.nodes if n.op not in ("placeholder", "output")]
    assert all(is_structural(graph_module, node) for node in path)
    return carry(graph_module, path, Carried(rank, torch.arange(shape[-1 - rank])))


@pytest.mark.parametrize(
    ("forward", "rank", "channels"),
    [
        (lambda x: x.permute(0, 2, 3, 1), 0, [0, 1]),
        (lambda x: x.transpose(1, -1).movedim(0, 2), 0, [0, 1]),
        (lambda x: x.flatten(1), 0, [0] * 6 + [1] * 6),
        (lambda x: x.transpose(1, 3).flatten(1), 0, [0, 1] * 6),
        (lambda x: x.flip(1).roll(1, 2), 2, [1, 0]),
        (lambda x: x.mean((2, 3)), 0, [0, 1]),
        (lambda x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False), 2, [0, 1]),
        (lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True).flatten(2), 1, [0, 1]),
        (lambda x: x.reshape(3, 2, 6)[0].mean(-1), 0, [0, 1]),
        (lambda x: x.unflatten(1, (1, 2)).flatten(0, 1), 2, [0, 1]),
    ],
)
def test_channels_are_followed(forward: Forward, rank: int, channels: list[int]) -> None:
    found = carried(forward, 3, 2, 2, 3)
    assert isinstance(found, Carried)
    assert (found.rank, found.channels.tolist()) == (rank, channels)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda x: x.mean(1), "channels cannot be told apart behind mean"),
        (lambda x: x.mean(), "channels cannot be told apart behind mean"),
        (lambda x: F.avg_pool2d(x, 2, 1, 1), "or a mean counts padding"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "told apart behind avg_pool2d"),
        (lambda x: x.view(-1, 3, 4, 4), "channels cannot be told apart behind view"),
        (lambda x: x.squeeze(), "the channels' place behind squeeze depends on the size"),
        (lambda x: x[:, :1], "channels cannot be told apart behind getitem"),
    ],
)
def test_what_mixes_channels_or_depends_on_the_size_is_refused(
    forward: Forward, reason: str
) -> None:
    found = carried(forward, 2, 4, 4, 1) if "squeeze" in reason else carried(forward, 2, 4, 6, 3)
    assert isinstance(found, Refusal)
    assert reason in found.reason


def test_what_is_no_rearrangement_is_not_structural() -> None:
    def forward(x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(torch.relu(x), (1, 1)), 2)

    graph_module = capture(Function(forward).eval())
    assert not any(is_structural(graph_module, node) for node in graph_module.graph.nodes)
    pooling = capture(nn.Sequential(nn.AvgPool2d(2)).eval())
    (node,) = pooling.graph.find_nodes(op="call_module")
    assert is_structural(pooling, node)
    pooling.get_submodule("0").register_forward_hook(lambda *_: None)
    assert not is_structural(pooling, node)
