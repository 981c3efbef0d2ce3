"""An importance: how often a channel is in its rarer state."""

import torch

from fxreduce.registry import SiteStatistics, register_importance


def minority(site: SiteStatistics) -> float:
    """min(p, 1 − p), mean over channels: from 0, always the same state, to 0.5."""
    p = site.on_probability  # [C]
    return float(torch.minimum(p, 1 - p).mean())


def register() -> None:
    """Let `importance="minority"` name it."""
    register_importance("minority", minority)
