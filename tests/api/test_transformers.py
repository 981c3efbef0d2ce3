"""transformers' models, small and random: captured, calibrated, reduced, with their own outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import fxreduce
from tests.checks import assert_close
from tests.text_models import WIDTH, Batch, roberta, text, tokens

transformers = pytest.importorskip("transformers")


def pixels(samples: int = 3, size: int = 16, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(samples, 3, size, size, generator=generator)}


def waves(samples: int = 3, length: int = 400, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {"input_values": torch.randn(samples, length, generator=generator)}


def image(model: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        cls = getattr(transformers, model)
        return cls(cls.config_class(image_size=16, num_labels=4, **options))

    return make


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=WIDTH, hidden_dim=2 * WIDTH, n_layers=2, n_heads=2
    )
    return transformers.DistilBertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def wav2vec2() -> nn.Module:
    config = transformers.Wav2Vec2Config(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=2 * WIDTH,
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return transformers.Wav2Vec2Model(config)


SMALL_VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 2 * WIDTH,
    "patch_size": 4,
}
SMALL_SWIN = {"patch_size": 2, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4}
SMALL_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}


@dataclass(frozen=True)
class Entry:
    """A model, its batches, the first site and how many operators one removal leaves fewer."""

    make: Callable[[], nn.Module]
    batch: Callable[..., Batch]
    sites: int
    first: str
    fewer: int


MODELS = {
    "bert": Entry(
        text("BertForSequenceClassification"), tokens,
        2, "bert.encoder.layer.0.intermediate.intermediate_act_fn.gelu", 1,
    ),
    "roberta": Entry(
        roberta, tokens,
        2, "roberta.encoder.layer.0.intermediate.intermediate_act_fn.gelu", 1,
    ),
    "distilbert": Entry(
        distilbert, tokens, 3, "distilbert.transformer.layer.0.ffn.activation.gelu", 1,
    ),
    "gpt2": Entry(gpt2, tokens, 2, "transformer.h.0.mlp.act.gelu", 1),
    "llama": Entry(text("LlamaForCausalLM"), tokens, 2, "model.layers.0.mlp.act_fn.silu", 0),
    "vit": Entry(
        image("ViTForImageClassification", **SMALL_VIT), pixels,
        2, "vit.layers.0.mlp.activation_fn.gelu", 1,
    ),
    "swin": Entry(
        image("SwinForImageClassification", **SMALL_SWIN), pixels,
        2, "swin.encoder.layers.0.blocks.0.mlp.activation_fn.gelu", 1,
    ),
    "convnext": Entry(
        image("ConvNextForImageClassification", **SMALL_CONVNEXT), pixels,
        2, "convnext.encoder.stages.0.layers.0.act.gelu", 1,
    ),
    "wav2vec2": Entry(wav2vec2, waves, 4, "feature_extractor.conv_layers.0.activation.gelu", 0),
}  # fmt: skip
QUICK = ("bert", "gpt2")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.zoo) for n in MODELS]
)
def test_a_model_of_transformers_is_reduced_end_to_end(name: str) -> None:
    entry = MODELS[name]
    torch.manual_seed(0)
    model = entry.make().eval().double()
    batches = [_double(entry.batch(seed=seed)) for seed in range(2)]
    fused = fxreduce.fuse(model, example_inputs=batches[0])
    report = fxreduce.report(fused)
    assert report.rung == "torch.export"
    assert (len(report.sites), report.sites[0].name) == (entry.sites, entry.first)
    other = _double(entry.batch(samples=2, seed=5))
    with torch.no_grad():
        expected = model(**other)
        assert type(fused(**other)) is type(expected)
        assert_close(expected[0], fused(**other)[0])

    labelled = [batch | {"labels": torch.zeros(3, dtype=torch.long)} for batch in batches]
    site = entry.first
    reduced = fxreduce.apply(model, labelled, budget=1, include=[site], compensate="identity")
    result = fxreduce.report(reduced)
    assert result.removed == (site,)
    assert result.operators_after == report.operators_after - entry.fewer
    assert result.max_error is not None
    assert result.max_error < 1e-9
    with torch.no_grad():
        assert type(reduced(**other)) is type(expected)


def _double(batch: Batch) -> Batch:
    return {
        name: value.double() if value.is_floating_point() else value
        for name, value in batch.items()
    }


def test_a_gated_product_is_not_merged_once_its_activation_is_gone() -> None:
    torch.manual_seed(0)
    model = text("LlamaModel")().eval().double()
    batch = tokens()
    captured = fxreduce.capture(model, batch)
    sites = [site.name for site in fxreduce.report(fxreduce.fuse(captured)).sites]
    linear = fxreduce.linearize(captured, sites)
    fused = fxreduce.fuse(linear, example_inputs=batch)
    with torch.no_grad():
        assert_close(linear(**batch)[0], fused(**batch)[0])
        x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
        mlp = model.layers[0].mlp
        product = mlp.down_proj(mlp.gate_proj(x) * mlp.up_proj(x))
        twice = mlp.down_proj(mlp.gate_proj(2 * x) * mlp.up_proj(2 * x))
        assert_close(4 * product, twice)  # it is quadratic
    linears = [n for n, m in fused.named_modules() if isinstance(m, nn.Linear)]
    weights = {n for n, _ in fused.named_parameters()}
    for layer in range(2):
        for part in ("gate_proj", "up_proj", "down_proj"):
            path = f"layers.{layer}.mlp.{part}"
            assert path in linears or f"{path}.weight" in weights
