"""Fitting an affine operator to data, by ridge regression around the weights that it has.

    min over W of  ‖Y − X·Wᵀ‖² + λ·‖(W − W₀)·D‖²,   D² = diag(XᵀX) + ε·mean(diag(XᵀX))

D measures a change of a weight by the change of the output that it makes, so that λ has no unit. It
is chosen by the error on held-out rows, see `Tether` for its bound. It is done in float64: with
more rows than weights from the normal equations, which are streamed, else from the rows themselves,
by the dual form

    Wᵀ = W₀ᵀ + D⁻²Xᵀ·(X·D⁻²Xᵀ + λ)⁻¹·(Y − X·W₀ᵀ).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fxreduce.operators.affine import Conv, Refusal
from fxreduce.operators.patches import features, outputs, patches, weights, with_weights

# Bytes that the fit of one operator keeps, and operations that it takes, about.
LARGEST, OPERATIONS = 1 << 30, 1e11
# Rows to fit to: so many for each weight of an output, and at least so many.
_ROWS_PER_WEIGHT, _LEAST_ROWS = 16, 4096
# Rows of which the dual form is solved: at most so many, and no fit is made of fewer.
_MOST_DUAL, _FEWEST = 2048, 64
# Strengths are tried from so many below the top on, where the held-out error falls.
_STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FROM_TOP = 5
# Rows that are turned into patches at once, in numbers.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Tether:
    """How far, at most, a fit may go from the weights that were.

    With `least` λ and `even` ε the fit bears noise on every feature, independent and of λ·ε of the
    features' mean square: it cannot rest on small differences of large weights, nor on features
    that are hardly ever other than 0.

    Attributes:
        least: λ is at least this.
        even: ε; the default is for features that are always 0.
    """

    least: float = 0.0
    even: float = 1e-9

    @property
    def strengths(self) -> tuple[float, ...]:
        """The λ to choose from, ascending."""
        return tuple(each for each in _STRENGTHS if each >= self.least) or (self.least,)

    def squares(self, diagonal: Tensor) -> Tensor:
        """D² from the diagonal of XᵀX, [groups, F]."""
        return diagonal + self.even * diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)


FREE = Tether()


class Others(Protocol):
    """Processes that have samples of the same operator, see `fxreduce.calibration.ranks.Ranks`."""

    def added(self, what: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of what all have."""
        ...

    def tensors(self, what: str, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What each has."""
        ...


@dataclass
class _Sums:
    """The normal equations: XᵀX [groups, F, F], XᵀY [groups, F, O] and ΣY², of float64."""

    xx: Tensor
    xy: Tensor
    tether: Tether
    yy: float = 0.0
    rows: int = 0

    @classmethod
    def of(cls, groups: int, width: int, out: int, device: torch.device, tether: Tether) -> _Sums:
        def zeros(last: int) -> Tensor:
            return torch.zeros(groups, width, last, dtype=torch.float64, device=device)

        return cls(zeros(width), zeros(out), tether)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.xx += x.mT @ x
        self.xy += x.mT @ y
        self.yy += float(y.double().square().sum())
        self.rows += y.shape[1]

    def error(self, w: Tensor) -> float:
        """Mean squared error of the weights [groups, O, F]."""
        wt = w.mT
        squared = (wt * (self.xx @ wt)).sum() - 2 * (wt * self.xy).sum()
        return max(self.yy + float(squared), 0.0) / max(self.rows * w.shape[0] * w.shape[1], 1)

    def ridge(self, start: Tensor, strength: float) -> Tensor:
        """The weights for one strength; `start` where the equations are singular."""
        scale = self.tether.squares(self.xx.diagonal(dim1=1, dim2=2))
        factor, failed = torch.linalg.cholesky_ex(self.xx + torch.diag_embed(strength * scale))
        if bool(failed.any()):
            return start
        return start + torch.cholesky_solve(self.xy - self.xx @ start.mT, factor).mT

    def error_for(self, start: Tensor, strength: float, judge: _Sums) -> float:
        """The error on other rows of the weights for one strength."""
        return judge.error(self.ridge(start, strength))

    def over(self, others: Others) -> None:
        """Add what other processes have."""
        own = {"xx": self.xx, "xy": self.xy, "yy": self.xx.new_tensor([self.yy, self.rows])}
        found = others.added("the normal equations", own)
        self.xx, self.xy = found["xx"], found["xy"]
        self.yy, self.rows = float(found["yy"][0]), int(found["yy"][1])

    def joined(self, other: _Sums) -> _Sums:
        xx, xy = self.xx + other.xx, self.xy + other.xy
        return _Sums(xx, xy, self.tether, self.yy + other.yy, self.rows + other.rows)


@dataclass
class _Rows:
    """The rows themselves: X in parts of [groups, n, F], Y in parts of [groups, n, O]."""

    tether: Tether
    device: torch.device
    parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _kept: tuple[_Rows, Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        return sum(y.shape[1] for _, y in self.parts)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.parts.append((x, y))

    def error(self, w: Tensor) -> float:
        x, y = self._whole
        return float((y - x @ w.mT).square().mean())

    def ridge(self, start: Tensor, strength: float) -> Tensor:
        x, _ = self._whole
        change = x.mT @ self._coefficients(start, strength) / self._scale.unsqueeze(2)
        return start + change.mT

    def error_for(self, start: Tensor, strength: float, judge: _Rows) -> float:
        # Without the weights, which may be many more than the rows.
        kernel, residual = judge._against(self, start)
        return float((residual - kernel @ self._coefficients(start, strength)).square().mean())

    def _coefficients(self, start: Tensor, strength: float) -> Tensor:
        """What each row adds to the weights, [groups, n, O]; 0 where the equations are singular."""
        kernel, residual = self._against(self, start)
        factor, failed = torch.linalg.cholesky_ex(
            kernel + strength * torch.eye(kernel.shape[1]).to(kernel)
        )
        if bool(failed.any()):
            return torch.zeros_like(residual)
        return torch.cholesky_solve(residual, factor)

    def _against(self, other: _Rows, start: Tensor) -> tuple[Tensor, Tensor]:
        """X·D⁻²·X'ᵀ with the rows X' and the D of others, and Y − X·W₀ᵀ."""
        if self._kept is None or self._kept[0] is not other:
            x, y = self._whole
            kernel = (x / other._scale.unsqueeze(1)) @ other._whole[0].mT
            self._kept = other, kernel, y - x @ start.mT
        return self._kept[1:]

    def over(self, others: Others) -> None:
        """Take in the rows of other processes."""
        own: dict[str, Tensor] = {}
        for n, (x, y) in enumerate(self.parts):
            own |= {f"x{n}": x, f"y{n}": y}
        found = others.tensors("the rows", own)
        self.parts = [
            (each[f"x{n}"].to(self.device), each[f"y{n}"].to(self.device))
            for each in found
            for n in range(len(each) // 2)
        ]

    def joined(self, other: _Rows) -> _Rows:
        return _Rows(self.tether, self.device, [*self.parts, *other.parts])

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        x, y = zip(*self.parts, strict=True)
        whole = torch.cat(x, 1), torch.cat(y, 1)
        self.parts = [whole]  # and not twice
        return whole

    @cached_property
    def _scale(self) -> Tensor:
        """D², [groups, F]."""
        return self.tether.squares(self._whole[0].square().sum(1))


@dataclass(frozen=True)
class Fit:
    """A fitted operator.

    Attributes:
        operator: in float64.
        before, after: the mean squared error of the outputs on held-out rows.
        strength: λ, infinite where the weights stay what they were.
    """

    operator: Conv
    before: float
    after: float
    strength: float


class Equations:
    """What the samples of one operator say of its weights.

    Args:
        operator: in float64.
        available: how many rows there are; `rows_for` tells how many of them to take.
        device: where to keep them.
        tether: bounds the fit.
        products: the dtype in which the products of a part of the rows are summed, before they are
            added in float64.
    """

    def __init__(
        self,
        operator: Conv,
        available: int,
        device: torch.device,
        tether: Tether = FREE,
        products: torch.dtype = torch.float64,
    ) -> None:
        self.operator = operator
        self._strengths = tether.strengths
        self.device = device
        width, groups = features(operator), operator.groups
        out = operator.out_channels // groups

        def empty() -> _Sums | _Rows:
            if dual:
                return _Rows(tether, device)
            return _Sums.of(groups, width, out, device, tether)

        dual = _is_dual(operator, available)
        self._dtype = torch.float64 if dual else products
        self._fit, self._held_out = empty(), empty()

    def add(self, x: Tensor, y: Tensor, positions: Tensor, held_out: Tensor) -> None:
        """Take in samples.

        Args:
            x: [N, C, *spatial], for rank 0 [N, C]: what the operator reads.
            y: [N, Cout, *spatial]: what it shall give.
            positions: which of the flattened positions of `y` to take, [L].
            held_out: which samples are held out, bool [N].
        """
        for sums, chosen in ((self._fit, ~held_out), (self._held_out, held_out)):
            samples = chosen.nonzero().flatten()
            size = len(positions) * features(self.operator) * self.operator.groups
            for part in samples.split(max(1, _CHUNK // size)) if len(samples) else ():
                read = patches(self.operator, x[part].to(self._dtype), positions)
                sums.add(read, outputs(self.operator, y[part].to(self._dtype), positions))

    def over(self, others: Others) -> None:
        """Take in what other processes have of the samples; then all have the same."""
        self._fit.over(others)
        self._held_out.over(others)

    def solve(self) -> Fit:
        """The operator that fits best; on held-out rows it is never worse than before."""
        start = weights(self.operator).to(self.device, torch.float64)
        if not self._fit.rows + self._held_out.rows:
            return Fit(with_weights(self.operator, start), 0.0, 0.0, float("inf"))
        before = self._judge.error(start)
        after, strength = self._search(start)
        if not after < before:
            return Fit(with_weights(self.operator, start), before, before, float("inf"))
        # What has been held out for the choice of the strength serves the fit at last.
        both = self._fit.rows and self._held_out.rows
        rows = self._fit.joined(self._held_out) if both else self._basis  # type: ignore[arg-type]
        return Fit(
            with_weights(self.operator, rows.ridge(start, strength)), before, after, strength
        )

    @property
    def _judge(self) -> _Sums | _Rows:
        return self._held_out if self._held_out.rows else self._fit

    @property
    def _basis(self) -> _Sums | _Rows:
        return self._fit if self._fit.rows else self._held_out

    def _search(self, start: Tensor) -> tuple[float, float]:
        """The least error on held-out rows, and the strength that has it."""

        def error(place: int) -> float:
            return self._basis.error_for(start, strengths[place], self._judge)  # type: ignore[arg-type]

        strengths = self._strengths
        middle = max(0, len(strengths) - _FROM_TOP)
        best, at = error(middle), middle
        for step in (-1, 1):
            place = at + step
            while 0 <= place < len(strengths) and (found := error(place)) < best:
                best, at = found, place
                place += step
            if at != middle:
                break
        return best, strengths[at]


def rows_for(operator: Conv, available: int) -> int:
    """How many of the available rows the fit takes: enough, and what memory and time allow."""
    width = features(operator)
    wanted = max(_ROWS_PER_WEIGHT * width, _LEAST_ROWS)
    affordable = int(OPERATIONS / (2 * width * width * operator.groups))
    if _is_dual(operator, available):
        fitting = LARGEST // (8 * operator.groups * (width + operator.out_channels))
        return min(available, _MOST_DUAL, fitting)
    return min(available, wanted, max(affordable, 2 * width))


def _is_dual(operator: Conv, available: int) -> bool:
    """Whether there are fewer rows than weights, or more weights than time or memory allows for."""
    width, groups = features(operator), operator.groups
    needed = 2 * 8 * groups * width * (width + operator.out_channels // groups)
    slow = 2 * groups * width**2 * (2 * width) > OPERATIONS
    return available < width or slow or needed > LARGEST


def too_large(operator: Conv) -> Refusal | None:
    """Why the operator cannot be fitted in bounded memory, if so."""
    width = features(operator)
    needed = 8 * operator.groups * (width + operator.out_channels) * _FEWEST
    if needed <= LARGEST:
        return None
    return Refusal(
        f"{_FEWEST} rows of {width} inputs and {operator.out_channels} outputs, the fewest to fit "
        f"to, take {needed / 2**30:.1f} GiB; the bound is {LARGEST / 2**30:.0f} GiB"
    )
