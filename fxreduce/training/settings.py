"""What a training run is made of, checked when it is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fxreduce.errors import UnsupportedError

OPTIMISERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "multistep", "cosine", "linear", "onecycle")
PRECISIONS = ("float32", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of one training run; the defaults are EASIER's on CIFAR-10.

    Attributes:
        epochs: Passes over the training samples.
        batch_size: Samples a step, over all ranks together. Samples that do not fill the last
            batch of an epoch are left out of it: they would disturb batch-norm's statistics.
        optimiser: `sgd`, `adam` or `adamw`, of torch.optim.
        rate: Learning rate, at the top of its schedule.
        momentum, nesterov: Of SGD.
        weight_decay: Of the optimiser.
        decay_vectors: Whether biases and the parameters of normalisations decay, too.
        schedule: `constant`; `multistep`: times `factor` at each of `milestones`; `cosine` or
            `linear`: down to zero; `onecycle`: up and down again.
        milestones: Epochs.
        factor: See `schedule`.
        warmup: Epochs of a linear rise of the rate, before or within the schedule.
        label_smoothing: Share of the target that all classes divide among them.
        mixup: Parameter of mixup's beta distribution; 0 is none.
        clip: Largest norm of the gradients; None for no bound.
        precision: `float32`; `bfloat16` or `float16` for mixed precision; `auto` is the best
            of them that the device computes fast, on a CPU `float32`.
        channels_last: Whether images and weights are laid out so.
        compile: Backend of torch.compile that the module is trained through, as `inductor`; None
            trains it as it is.
        workers: Processes that prepare samples; 0 prepares them between the steps.
        deterministic: Whether cuDNN has to compute the same every time.
    """

    epochs: int = 160
    batch_size: int = 128
    optimiser: str = "sgd"
    rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_vectors: bool = True
    schedule: str = "multistep"
    milestones: tuple[int, ...] = (80, 120)
    factor: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    clip: float | None = None
    precision: str = "float32"
    channels_last: bool = False
    compile: str | None = None
    workers: int = 0
    deterministic: bool = True

    def __post_init__(self) -> None:
        rules = (
            (self.epochs >= 1, "epochs is at least 1", self.epochs),
            (self.batch_size >= 1, "batch_size is at least 1", self.batch_size),
            (self.rate > 0, "rate is above 0", self.rate),
            (self.weight_decay >= 0, "weight_decay is at least 0", self.weight_decay),
            (0 <= self.momentum < 1, "momentum is from 0 to below 1", self.momentum),
            (0 <= self.label_smoothing < 1, "label_smoothing is from 0 to below 1",
             self.label_smoothing),
            (self.mixup >= 0, "mixup is at least 0", self.mixup),
            (0 <= self.warmup <= self.epochs, "warmup is from 0 to epochs", self.warmup),
            (self.clip is None or self.clip > 0, "clip is above 0", self.clip),
            (self.workers >= 0, "workers is at least 0", self.workers),
            (self.optimiser in OPTIMISERS, f"optimiser is one of {', '.join(OPTIMISERS)}",
             self.optimiser),
            (self.schedule in SCHEDULES, f"schedule is one of {', '.join(SCHEDULES)}",
             self.schedule),
            (self.precision in PRECISIONS, f"precision is one of {', '.join(PRECISIONS)}",
             self.precision),
        )  # fmt: skip
        for kept, rule, seen in rules:
            if not kept:
                raise UnsupportedError(f"of training settings, {rule}; got {seen}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """The settings with these values, as a file has them, and the defaults for the rest.

        Raises:
            UnsupportedError: There is no such setting, or a value is out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UnsupportedError(
                    f"there is no training setting {name!r}; there are {', '.join(known)}"
                )
        milestones = tuple(values.get("milestones", cls.milestones))
        return cls(**{**values, "milestones": milestones})
