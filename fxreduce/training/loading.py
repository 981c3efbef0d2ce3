"""Batches for training: a new order every epoch, dealt to the ranks, prepared by workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fxreduce.calibration.ranks import rank
from fxreduce.data.dataset import Inputs, Source
from fxreduce.errors import CalibrationError
from fxreduce.training.distributed import world_size

_SPREAD = 1_000_003  # apart from the seeds of the orders, which go up by one an epoch


class TrainingBatches:
    """Batches of varied samples, the same for a seed on one process and on several together.

    Args:
        source: The samples.
        indices: `[N]`, those to train on.
        batch_size: Samples of a step, over all ranks together.
        workers: Processes that prepare them.
        seed: Of the orders and variations.

    Raises:
        CalibrationError: There are fewer samples than ranks.
    """

    def __init__(
        self, source: Source, indices: Tensor, *, batch_size: int, workers: int, seed: int
    ) -> None:
        ranks = world_size()
        if len(indices) < ranks or batch_size < ranks:
            raise CalibrationError(
                f"every rank needs a sample in every batch; there are {len(indices)} samples in "
                f"batches of {batch_size} for {ranks} ranks"
            )
        self._varied = _Varied(source, indices, seed)
        self._sampler: DistributedSampler[Any] = DistributedSampler(
            self._varied, ranks, rank(), seed=seed, drop_last=True
        )
        self._loader: DataLoader[Any] = DataLoader(
            self._varied,
            batch_size=min(batch_size, len(indices)) // ranks,
            sampler=self._sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            drop_last=True,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        """The batches of an epoch; its number decides their order and the variations."""
        self._sampler.set_epoch(number)
        self._varied.epoch = number  # workers are started anew every epoch and see it
        return iter(self._loader)


class _Varied(Dataset[Any]):
    def __init__(self, source: Source, indices: Tensor, seed: int) -> None:
        self.epoch = 0
        self._source, self._indices, self._seed = source, indices, seed

    def __len__(self) -> int:
        return len(self._indices)

    def __getitems__(self, positions: list[int]) -> tuple[Inputs, Tensor]:
        """A whole batch: what can be computed for all its samples together, is."""
        seed = self._seed + _SPREAD * (self.epoch + 1)
        return self._source.vary(self._indices[positions], seed)


def _as_it_is(batch: Any) -> Any:
    return batch
