"""Transformers and ConvNeXt without GELUs: each MLP is one Linear, norms and scales are folded."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
from checks import assert_close, randomised
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule
from torchvision.models import ConvNeXt, SwinTransformer
from torchvision.models.convnext import CNBlockConfig

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.norms import NormCall, read_norm
from fxreduce.graph.rectifiers import find_sites


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)])


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 16, [2, 2], [2, 2], [7, 7])


def fused(model: nn.Module, x: Tensor, *, exported: bool) -> GraphModule:
    """The model without its GELUs, fused; with an affine part in each norm and scale."""
    randomised(model)
    for parameter in model.parameters():
        if parameter.dim() == 1 or parameter[0].numel() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    captured = capture(export(model, (x,))) if exported else capture(model, x)
    removed = fxreduce.linearize(captured, [site.name for site in find_sites(captured)])
    result = fxreduce.fuse(removed)
    assert_close(removed(x), result(x))
    return result


def kinds(graph_module: GraphModule) -> Counter[str]:
    called = graph_module.graph.find_nodes(op="call_module")
    return Counter(type(graph_module.get_submodule(str(node.target))).__name__ for node in called)


def whole_norms(graph_module: GraphModule) -> int:
    """How many norms still have an affine part."""
    read = [read_norm(graph_module, node) for node in graph_module.graph.nodes]
    return sum(isinstance(each, NormCall) for each in read)


@pytest.mark.parametrize("exported", [False, True])
def test_vit_keeps_no_affine_part_of_a_norm(exported: bool) -> None:
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    result = fused(vit(), x, exported=exported)
    assert whole_norms(result) == 0
    # The patches, and of each block qkv, projection and what was an MLP of two; the head.
    assert fxreduce.report(result).operators_after == 1 + 2 * 3 + 1 + 1


@pytest.mark.parametrize("exported", [False, True])
def test_convnext_keeps_neither_layer_scales_nor_norms_but_the_stem_s(exported: bool) -> None:
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    result = fused(convnext(), x, exported=exported)
    assert whole_norms(result) == 1  # also read by the skip
    # The stem, depthwise and MLP of three blocks, the one between the stages and the head.
    assert fxreduce.report(result).operators_after == 1 + 3 * 2 + 1 + 1
    if not exported:
        assert kinds(result)["Linear"] == 3 + 1
    folded = {refusal.where for refusal in fxreduce.report(result).refusals}
    assert "layer_norm" in folded


def test_swin_keeps_the_norms_that_opaque_attention_reads() -> None:
    x = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    result = fused(swin(), x, exported=False)
    reasons = [
        refusal.reason
        for refusal in fxreduce.report(result).refusals
        if refusal.rewrite == "fold_norm"
    ]
    assert reasons == [
        "features.1.0.norm1 reads it: not an affine operator",
        *(
            f"shifted_window_attention{n} reads it: not an affine operator"
            for n in ("", "_1", "_2", "_3")
        ),
    ]
    assert whole_norms(result) == len(reasons)
    # The MLPs of four blocks, the reduction between the stages and the head.
    assert kinds(result)["Linear"] == 4 + 1 + 1
