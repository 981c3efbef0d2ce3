"""Text classifiers of transformers, built from a configuration; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fxreduce.cli.errors import unknown_name
from fxreduce.errors import UnsupportedError, missing_extra


def text_classifier(name: str, classes: int) -> nn.Module:
    """A sequence classifier with random weights; inputs are named as its tokenizer names them.

    Args:
        name: A model type of transformers (`bert`, `roberta`, ...) in its default size, or a folder
            with a `config.json`.
        classes: Logits.

    Raises:
        UnsupportedError: transformers is not installed, or has no sequence classifier of that name.
    """
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", f"transformers:{name}", "transformers") from None
    known = list(transformers.CONFIG_MAPPING)
    options: dict[str, Any] = {"num_labels": classes}
    if Path(name, "config.json").is_file():
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, **options)
    elif name in known:
        config = transformers.AutoConfig.for_model(name, **options)
    else:
        what = f"transformers has no model type {name!r}, nor is it a folder with a config.json"
        raise unknown_name(what, name, known, "bert and roberta are two of them")
    try:
        builder: Any = transformers.AutoModelForSequenceClassification
        module: nn.Module = builder.from_config(config)
    except ValueError as error:
        raise UnsupportedError(f"transformers:{name} has no sequence classifier") from error
    return module
