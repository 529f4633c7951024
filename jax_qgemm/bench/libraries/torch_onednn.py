"""oneDNN, as PyTorch has it.

The static layer is the operator that PyTorch's compiler emits for x86: `quantized.linear_relu`
with a zero point of x other than 0 ends in oneDNN's reference code in some releases, thousands of
times slower.
"""

from __future__ import annotations

import functools

import torch

from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.libraries import torch_loop

VERSION = torch_loop.VERSION
_ENGINE = "onednn"


def _static(layers: list[Layer]) -> torch_loop.Loop:
    return torch_loop.Loop(_call_static, [_operands(layer) for layer in layers])


def _operands(layer: Layer):
    x = torch.from_numpy(layer.x_uint8)
    w = torch.ops.onednn.qlinear_prepack(torch.from_numpy(layer.w_int8.T.copy()), list(x.shape))
    zero_points = torch.zeros(layer.w.shape[1], dtype=torch.int64)
    w_scale, bias = torch.from_numpy(layer.w_scale), torch.from_numpy(layer.bias)
    return x, float(layer.x_scale), w, w_scale, zero_points, bias, float(layer.out_scale)


def _call_static(x, x_scale, w, w_scale, w_zero_points, bias, out_scale) -> torch.Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        *(x, x_scale, 128, w, w_scale, w_zero_points, bias),
        *(out_scale, 0, torch.uint8, "relu", [], ""),
    )


def _bf16(layers: list[Layer]) -> torch_loop.Loop:
    """The weight laid out ahead of time, as PyTorch's compiler does."""
    operands = []
    for layer in layers:
        x, w = torch.from_numpy(layer.x).bfloat16(), torch.from_numpy(layer.w.T.copy()).bfloat16()
        operands.append((x, torch.ops.mkldnn._reorder_linear_weight(w, x.shape[0])))
    return torch_loop.Loop(_call_bf16, operands)


def _call_bf16(x, w) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


PROGRAMS = {
    "onednn_dynamic": functools.partial(torch_loop.dynamic, _ENGINE),
    "onednn_static": _static,
    "onednn_bf16": _bf16,
}
