"""Linear maps whose weight is stored in 4 or 8 bits, through bitsandbytes (extra `quantized`).

Follows: QLoRA (arXiv 2305.14314): NF4 in blocks of 64 with scales that are quantised, too; LLM.int8() (arXiv
2208.07339): a scale for each row. Differs in: the product runs in the precision around it (docs/precision.md) and
gives its type back; and in 8 bits activations are left alone. LLM.int8() looks for outliers over all tokens of a
call, so that what a token gets would depend on its neighbours in the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional
from torch import Tensor, nn

# it says nothing of its types
bnb: Any = bitsandbytes

# numbers of a weight that are quantised at once: while they are, they take several times their own memory
_AT_ONCE = 2**16


class NF4Linear(bnb.nn.Linear4bit):
    """A frozen linear map in 4 bits; its bias is whole."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias, compress_statistics=True, quant_type="nf4")

    def quantize(self, weight: Tensor) -> nn.Parameter:
        """The parameter that stands for a weight (out, in): what bitsandbytes makes of it whole, part by part."""
        parts = [functional.quantize_4bit(part, quant_type="nf4") for part in _parts(weight)]
        numbers, first = torch.cat([numbers for numbers, _ in parts]), parts[0][1]
        largest = torch.cat([state.absmax for _, state in parts])
        mean = largest.mean()
        scales, of_scales = functional.quantize_blockwise(largest - mean, blocksize=256)
        self.quant_state = functional.QuantState(
            scales,
            shape=weight.shape,
            dtype=weight.dtype,
            blocksize=first.blocksize,
            code=first.code,
            quant_type="nf4",
            offset=mean,
            state2=of_scales,
        )
        return bnb.nn.Params4bit(
            numbers, quant_type="nf4", quant_state=self.quant_state, module=self, bnb_quantized=True
        )

    def settle(self) -> None:
        """Nothing is left to do once the weight is read: its scales are its own."""

    def dequantized(self) -> Tensor:
        """The weight that this map multiplies with (out, in), float32."""
        bnb.nn.modules.fix_4bit_weight_quant_state_from_module(self)
        return functional.dequantize_4bit(self.weight.data, self.weight.quant_state).float()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) -> (..., out) in the precision around it."""
        bnb.nn.modules.fix_4bit_weight_quant_state_from_module(self)
        dtype = _precision(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return bnb.matmul_4bit(x.to(dtype), self.weight, bias=bias, quant_state=self.weight.quant_state)


class Int8Linear(nn.Linear):
    """A frozen linear map in 8 bits with a scale for each output; its bias is whole."""

    scale: Tensor
    _read: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False)

    def quantize(self, weight: Tensor) -> nn.Parameter:
        """The parameter that stands for a weight (out, in); the scales are kept beside it."""
        parts = [_in_eight_bits(part) for part in _parts(weight)]
        self._read = torch.cat([scale for _, scale in parts])
        return nn.Parameter(torch.cat([values for values, _ in parts]), requires_grad=False)

    def settle(self) -> None:
        """Take the scales for good; while a model loads, transformers makes all buffers anew."""
        self.register_buffer("scale", self._read, persistent=False)
        del self._read

    def dequantized(self) -> Tensor:
        """The weight that this map multiplies with (out, in), float32."""
        return functional.int8_vectorwise_dequant(self.weight.data, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) -> (..., out) in the precision around it."""
        dtype = _precision(x)
        product = _Int8Product.apply(x.to(dtype), self.weight, self.scale)
        return product if self.bias is None else product + self.bias.to(dtype)


class _Int8Product(torch.autograd.Function):
    """x @ W.T, whose backward makes W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return nn.functional.linear(x, functional.int8_vectorwise_dequant(weight, scale).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        return gradient @ functional.int8_vectorwise_dequant(weight, scale).to(gradient.dtype), None, None


QuantizedLinear = NF4Linear | Int8Linear
LAYERS: dict[str, type[QuantizedLinear]] = {"nf4": NF4Linear, "int8": Int8Linear}


def _parts(weight: Tensor) -> Iterator[Tensor]:
    """Rows of a weight (out, in), each time some with whole blocks of 64 numbers between them."""
    step = math.lcm(64, weight.shape[1]) // weight.shape[1]
    yield from weight.split(max(step, _AT_ONCE // weight.shape[1] // step * step))


def _in_eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (out, in) of 8 bits, and the scale of each row (out,)."""
    # its kernels read half precision, which rounds far finer than 8 bits and ends at 65504
    factor = _beyond_half(weight)
    within = weight / factor[:, None] if bool((factor > 1).any()) else weight
    values, scale, _ = functional.int8_vectorwise_quant(within.half())
    return values, scale * factor


def _beyond_half(weight: Tensor) -> Tensor:
    """The power of two (out,) that brings each row within half precision; 1 for nearly all there are."""
    low, high = weight.aminmax(dim=1)
    return (torch.maximum(-low, high).float() / 2**15).log2().ceil().clamp(min=0).exp2()


def _precision(x: Tensor) -> torch.dtype:
    """What a product of a tensor runs in: autocast's type, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
