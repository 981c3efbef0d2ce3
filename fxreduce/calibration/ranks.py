"""Agreement of the processes of torch.distributed: statistics of all of them, one decision.

Without a process group, or with one process, everything here returns what it is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fxreduce.calibration.statistics import ChannelStatistics


def is_distributed() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if is_distributed() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def over_ranks(statistics: Mapping[str, ChannelStatistics]) -> dict[str, ChannelStatistics]:
    """The statistics of all ranks' batches together, by site; the same on every rank.

    Counts travel as float64, which is exact up to 2^53 of them, and are merged in the order of the
    ranks.
    """
    if not is_distributed():
        return dict(statistics)
    states = {name: each.tensors() for name, each in statistics.items()}
    tensors = [tensor for state in states.values() for tensor in state.values()]
    flat = [tensor.double().flatten().cpu() for tensor in tensors]
    gathered = _gather(torch.cat(flat)) if flat else []
    merged: dict[str, ChannelStatistics] = {}
    for vector in gathered:
        values = iter(vector.split([len(each) for each in flat]))
        for name, state in states.items():
            theirs = ChannelStatistics.from_tensors(
                {key: next(values).view(own.shape).to(own) for key, own in state.items()}
            )
            merged[name] = merged[name].merge(theirs) if name in merged else theirs
    return merged


def mean_over_ranks(value: float) -> float:
    """The mean of what the ranks have; where all have the same, that."""
    if not is_distributed():
        return value
    values = [float(each) for each in _gather(torch.tensor([value], dtype=torch.float64))]
    return math.fsum(values) / len(values)


def first_rank(value: Any) -> Any:
    """What rank 0 has, on every rank; it travels as JSON, so that nothing is unpickled."""
    if not is_distributed():
        return value
    content = json.dumps(value).encode()
    size = torch.tensor([len(content)], device=_device())
    dist.broadcast(size, 0)
    data = torch.zeros(int(size), dtype=torch.uint8, device=_device())
    if is_first():
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(data, 0)
    return json.loads(bytes(data.cpu().tolist()))


def _gather(vector: Tensor) -> list[Tensor]:
    """The vectors of all ranks, of equal length, in the order of the ranks."""
    vector = vector.to(_device())
    vectors = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(vectors, vector)
    return [each.cpu() for each in vectors]


def _device() -> torch.device:
    """Where collectives of the group's backend want their tensors."""
    cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
