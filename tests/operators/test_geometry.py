"""Merging geometries is remembered, merging values is not."""

from __future__ import annotations

import torch

from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.geometry import once_for_geometries


def conv(kernel: int = 1, **options: object) -> Conv:
    return Conv(torch.randn(4, 4, kernel, kernel), **options)


def test_equal_geometries_are_merged_once_and_values_each_time() -> None:
    asked: list[Operator] = []

    @once_for_geometries
    def merge(f: Operator, g: Operator) -> Operator | Refusal:
        asked.append(f)
        return compose(f, g)

    for _ in range(2):
        merge(conv(), conv(3))
        merge(on_meta(conv()), on_meta(conv(3)))
    assert len(asked) == 3


def test_whatever_differs_in_geometry_is_merged_anew() -> None:
    scale = ScaleShift(torch.ones(4), torch.ones(4), 2)
    kinds = [
        conv(),
        conv(bias=torch.ones(4)),
        conv(stride=(2, 2)),
        conv(padding=(1, 1)),
        conv(3),
        conv(3, padding=(1, 1)),
        conv(3, dilation=(2, 2)),
        conv(3, padding=(1, 1), padding_mode="circular"),
        conv(3, padding=(1, 1), border=torch.ones(4, 3, 3)),
        Conv(torch.randn(4, 1, 1, 1), groups=4),
        Conv(torch.randn(4, 4, 1, 1), transposed=True),
        Conv(torch.randn(4, 4, 2, 2), stride=(2, 2), transposed=True),
        Conv(torch.randn(4, 4, 2, 2), stride=(2, 2), output_padding=(1, 1), transposed=True),
        scale,
    ]
    for f in kinds:
        for g in kinds:
            by_shape, by_value = compose(on_meta(f), on_meta(g)), compose(f, g)
            if isinstance(by_value, Refusal) or isinstance(by_shape, Refusal):
                assert by_shape == by_value
            else:
                assert str(on_meta(by_value)) == str(by_shape)
