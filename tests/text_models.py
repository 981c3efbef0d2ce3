"""Small text models of transformers with random weights, and tokens for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
WIDTH = 16
Batch = dict[str, Tensor]


def tokens(samples: int = 3, length: int = 10, seed: int = 0) -> Batch:
    """Token numbers and an attention mask that pads some of the samples."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1 % samples, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def text(model: str, **options: Any) -> Callable[[], nn.Module]:
    """A text model of two layers by the name of its class."""

    def make() -> nn.Module:
        cls = getattr(transformers, model)
        sizes = {
            "vocab_size": 50,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": 32,
        }
        return cls(cls.config_class(**sizes, **options))

    return make


def roberta() -> nn.Module:
    return text("RobertaForSequenceClassification", pad_token_id=1)()
