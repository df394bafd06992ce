"""Dropout that a checkpoint brings along."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def silence_dropout(backbone: nn.Module) -> int:
    """Turn a checkpoint's own dropout off in place, that of adapters stays; returns how many modules had any.

    A stock module keeps its probability in `nn.Dropout.p`, or in an attribute such as `attention_dropout` that its
    forward hands to the attention function. The configuration, which is exported, is left as it is.
    """
    silenced = 0
    for name, module in backbone.named_modules():
        if "lora_" in name:
            continue
        rates = [
            attribute
            for attribute, value in vars(module).items()
            if isinstance(value, float) and value > 0 and (isinstance(module, _DropoutNd) or _is_dropout(attribute))
        ]
        for attribute in rates:
            setattr(module, attribute, 0.0)
        silenced += bool(rates)
    return silenced


def _is_dropout(attribute: str) -> bool:
    return "dropout" in attribute or attribute in ("drop_prob", "drop_path_rate")
