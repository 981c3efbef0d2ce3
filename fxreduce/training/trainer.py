"""The trainer: an optimiser, a schedule, and batches, epoch after epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fxreduce.calibration.ranks import first_rank, is_first, rank
from fxreduce.data.dataset import DataSet, Inputs, as_tensor
from fxreduce.errors import TrainingError, UnsupportedError
from fxreduce.progress import track
from fxreduce.training.batch_norm import shared_statistics
from fxreduce.training.distributed import share_buffers, summed, world_size
from fxreduce.training.evaluate import logits, to_device
from fxreduce.training.loading import TrainingBatches
from fxreduce.training.optimisers import make_optimiser, make_schedule
from fxreduce.training.precision import Precision
from fxreduce.training.settings import TrainingSettings

_SEEDS = 2**31
# From the loss on the labels to the one that is minimised: of the module under training, that
# loss, its logits and their inputs.
ChangeLoss = Callable[[nn.Module, Tensor, Tensor, Inputs], Tensor]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training samples.

    Attributes:
        number: From 0.
        loss: Mean over the samples, as it was changed.
        rate: Learning rate after its last step.
    """

    number: int
    loss: float
    rate: float


@dataclass
class Trainer:
    """Trains classifiers in place, each call from a fresh optimiser; the seed fixes the result.

    Under torchrun the module is trained by DistributedDataParallel: `batch_size` is of all ranks
    together, and batch-norms normalise by all of it, so that it is as if one process trained.

    Attributes:
        data: Its training part is trained on.
        settings: The hyperparameters.
        device: Where modules are trained; they stay there.
        seed: Of the orders, variations, dropout and mixup. None draws one from torch's random
            numbers at each call, so that a schedule that seeds its rounds trains each of them on
            another order, and on the same one when it is resumed.
        change_loss: Makes the loss that is minimised from the one on the labels.
        begin_epoch: Called with the module under training before each epoch.
        progress: See `fxreduce.progress.track`.
        description: What the progress bar says first.
        epochs: The passes of all calls so far.
    """

    data: DataSet
    settings: TrainingSettings
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int | None = 0
    change_loss: ChangeLoss | None = None
    begin_epoch: Callable[[nn.Module], None] | None = None
    progress: bool | None = None
    description: str = "training"
    epochs: list[Epoch] = field(default_factory=list)

    def __call__(self, module: nn.Module) -> None:
        """Train `module` in place; it is left in eval mode.

        Raises:
            TrainingError: The loss or a weight is no longer finite; the module then has the
                weights of the last epoch that ended well.
            CalibrationError: There are too few samples.
            UnsupportedError: The device lacks the precision, mixup is asked for on text, or the
                module is no classifier with at least as many logits as there are classes.
        """
        seed = int(torch.randint(_SEEDS, ())) if self.seed is None else self.seed
        with self._reproducible(seed := first_rank(seed)), shared_statistics(module):
            self._train(module, seed)

    def _train(self, module: nn.Module, seed: int) -> None:
        settings = self.settings
        batches = TrainingBatches(
            self.data.source,
            self.data.train,
            batch_size=settings.batch_size,
            workers=settings.workers,
            seed=seed,
        )
        module.to(self.device).train()
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)
        optimiser = make_optimiser(module, settings)
        schedule = make_schedule(optimiser, settings, len(batches))
        precision = Precision.of(settings.precision, self.device)
        trained = self._wrapped(module)
        good = _state(module)
        for number in range(settings.epochs):
            if self.begin_epoch is not None:
                self.begin_epoch(module)
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for inputs, labels in self._shown(batches, number):
                loss = self._loss(module, trained, inputs, labels, precision)
                optimiser.zero_grad()
                precision.step(loss, optimiser, module, settings.clip)
                schedule.step()
                total += loss.detach()
            loss_of_epoch = float(summed(total)) / world_size() / len(batches)
            if not _finite(module, loss_of_epoch):
                module.load_state_dict(good)
                self._finish(module)
                raise TrainingError(
                    f"training must stay finite; in epoch {number + 1} the loss is "
                    f"{loss_of_epoch:g}, the rate was {settings.rate:g}. Lower the rate, give it "
                    "a warm-up or clip the gradients. The module has the weights of epoch "
                    f"{number}"
                )
            good = _state(module)
            self.epochs.append(Epoch(number, loss_of_epoch, float(schedule.get_last_lr()[0])))
        self._finish(module)

    def _shown(self, batches: TrainingBatches, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        text = f"{self.description}, epoch {number + 1}/{self.settings.epochs}"
        if number:
            text += f", loss {self.epochs[-1].loss:.3f}"
        progress = self.progress if is_first() else False
        yield from track(batches.epoch(number), text, total=len(batches), progress=progress)

    def _loss(
        self,
        module: nn.Module,
        trained: nn.Module,
        inputs: Inputs,
        labels: Tensor,
        precision: Precision,
    ) -> Tensor:
        inputs, labels = to_device(inputs, self.device), labels.to(self.device)
        if self.settings.mixup:
            inputs, labels = self._mixed(inputs, labels)
        if self.settings.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with precision.autocast():
            found = logits(trained, inputs)
        if found.shape[1] < self.data.classes:
            raise UnsupportedError(
                f"{self.data.name} has {self.data.classes} classes; {type(module).__name__} "
                f"returns {found.shape[1]} logits"
            )
        found = found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
        loss = functional.cross_entropy(
            found, labels, label_smoothing=self.settings.label_smoothing
        )
        return loss if self.change_loss is None else self.change_loss(module, loss, found, inputs)

    def _mixed(self, inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
        inputs = as_tensor(inputs, "mixup")
        from torchvision.transforms import v2

        mixed: tuple[Tensor, Tensor] = v2.MixUp(
            alpha=self.settings.mixup, num_classes=self.data.classes
        )(inputs, labels)
        return mixed

    def _wrapped(self, module: nn.Module) -> nn.Module:
        """What is called in the place of the module; the weights are the same."""
        wrapped = module
        if world_size() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            wrapped = DistributedDataParallel(module, device_ids=devices)
        if self.settings.compile is not None:
            # For a module it returns a module.
            wrapped = torch.compile(wrapped, backend=self.settings.compile)  # type: ignore[assignment]
        return wrapped

    def _finish(self, module: nn.Module) -> None:
        share_buffers(module)
        module.to(memory_format=torch.contiguous_format).eval()

    @contextmanager
    def _reproducible(self, seed: int) -> Iterator[None]:
        """Random numbers from the seed; the caller's go on afterwards as if none was drawn."""
        devices = [self.device] if self.device.type == "cuda" else []
        deterministic = self.settings.deterministic
        with (
            torch.random.fork_rng(devices=devices),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=not deterministic, deterministic=deterministic
            ),
        ):
            torch.manual_seed(seed + rank())  # ranks drop out different units
            yield


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _finite(module: nn.Module, loss: float) -> bool:
    """Whether the loss and, after the last step, the weights are finite; the same on all ranks."""
    weights = all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    return weights and math.isfinite(loss)
