"""FBGEMM, as PyTorch has it."""

from __future__ import annotations

import functools

import torch

from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.libraries import torch_loop

VERSION = torch_loop.VERSION
_ENGINE = "fbgemm"


def _static(layers: list[Layer]) -> torch_loop.Loop:
    torch.backends.quantized.engine = _ENGINE
    operands = []
    for layer in layers:
        x = torch._make_per_tensor_quantized_tensor(
            torch.from_numpy(layer.x_uint8), float(layer.x_scale), 128
        )
        weight = torch_loop.quantized_weight(layer, with_bias=True)
        operands.append((x, weight, float(layer.out_scale), 0))
    return torch_loop.Loop(torch.ops.quantized.linear_relu, operands)


def _fp16(layers: list[Layer]) -> torch_loop.Loop:
    torch.backends.quantized.engine = _ENGINE
    operands = []
    for layer in layers:
        weight = torch.ops.quantized.linear_prepack_fp16(torch.from_numpy(layer.w.T.copy()), None)
        operands.append((torch.from_numpy(layer.x), weight))
    return torch_loop.Loop(torch.ops.quantized.linear_dynamic_fp16, operands)


PROGRAMS = {
    "fbgemm_dynamic": functools.partial(torch_loop.dynamic, _ENGINE),
    "fbgemm_static": _static,
    "fbgemm_fp16": _fp16,
}
