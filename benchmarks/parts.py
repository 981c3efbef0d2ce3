"""The parts, and how large each is in a whole run and in a short one.

A whole run takes less than forty minutes on two cores, a short one less than five. A part alone
takes all that its module has, which for the frontier and for retraining is hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """A part of the benchmarks.

    Attributes:
        name: on the command line, and of its files.
        module: what runs it.
        sizes: the arguments by the size of the run, as they are typed; none for the full size.
    """

    name: str
    module: str
    sizes: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, size: str) -> list[str]:
        return self.sizes.get(size, "").split()


# Enough to be reduced; training to the end takes longer than all the rest.
WHOLE = "--networks resnet18 mobilenet_v2 --epochs 12 --seeds 0"
SHORT = "--networks resnet18 --epochs 4 --seeds 0 --no-inductor"
PARTS = (
    Part(
        "calibration",
        "benchmarks.calibration",
        {"whole": "--processes 1", "short": "--models resnet18 --runs 3 --processes 1"},
    ),
    Part(
        "economy",
        "benchmarks.economy",
        {
            "whole": "--models resnet50 --images 16 --networks",
            "short": "--models resnet18 --images 16 --size 32 --networks",
        },
    ),
    Part(
        "fusion",
        "benchmarks.fusion",
        {
            "whole": "--cases mobilenet_v2 vit_small resnet18 --runs 11",
            "short": "--cases mobilenet_v2 --runs 5 --no-inductor",
        },
    ),
    Part(
        "backend",
        "benchmarks.backend",
        {
            "whole": "--cases mobilenet_v2 bert --batches 1 --compilations 1",
            "short": "--cases bert --batches 1 --compilations 1 --runs 5",
        },
    ),
    Part(
        "scale",
        "benchmarks.scale",
        {"whole": "--sizes 100 300 1000 --limit 40", "short": "--sizes 30 300 --models swin_b"},
    ),
    Part(
        "cost",
        "benchmarks.cost_model",
        {
            "whole": "--cases mobilenet_v2 vit_small resnet50 --runs 7",
            "short": "--cases mobilenet_v2 --runs 3",
        },
    ),
    Part(
        "zoo",
        "benchmarks.coverage",
        {"whole": "--largest 6000000", "short": "--names timm:test_resnet timm:test_vit*"},
    ),
    Part(
        "peers",
        "benchmarks.peers",
        {
            "whole": "--cases mobilenet_v2 vit_small --untouched resnet50 --runs 11",
            "short": "--cases mobilenet_v2 --untouched --runs 5 --batches 1",
        },
    ),
    Part(
        "frontier",
        "benchmarks.frontier",
        {
            "whole": f"{WHOLE} --ways identity planner --fractions 0.5 --views 1",
            "short": f"{SHORT} --ways identity --fractions 0.5 --views 1",
        },
    ),
    Part(
        "pruning",
        "benchmarks.pruning",
        {
            "whole": WHOLE,
            "short": f"{SHORT} --fraction 0.5",
        },
    ),
    Part(
        "retraining",
        "benchmarks.retraining",
        {
            "whole": "--dense 12 --seeds 0 --epochs 2 --rounds 6 --ways published refit",
            "short": "--dense 4 --seeds 0 --epochs 1 --rounds 1 --ways published refit",
        },
    ),
)
