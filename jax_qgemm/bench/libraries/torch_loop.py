"""PyTorch: a Python loop over the layers. The cost of each call is part of what its users get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from jax_qgemm.bench.layers import Layer
from jax_qgemm.bench.machine import threads

VERSION = f"torch {torch.__version__}"


class Loop:
    """A program of PyTorch."""

    def __init__(self, call: Callable[..., torch.Tensor], layers: Sequence[tuple[Any, ...]]):
        torch.set_num_threads(threads())
        self._call, self._layers = call, list(layers)
        self()

    def __call__(self) -> None:
        self._results = []  # their memory is free for the new ones: no page faults
        with torch.inference_mode():
            self._results = [self._call(*operands) for operands in self._layers]

    @property
    def results(self) -> list[np.ndarray]:
        plain = (
            y.int_repr() if y.is_quantized else y.float() if y.is_floating_point() else y
            for y in self._results
        )
        return [y.numpy() for y in plain]


def quantized_weight(layer: Layer, with_bias: bool) -> Any:
    """The weight as the engine chosen in `torch.backends.quantized` packs it."""
    weight = torch._make_per_channel_quantized_tensor(
        torch.from_numpy(layer.w_int8.T.copy()),
        torch.from_numpy(layer.w_scale).double(),
        torch.zeros(layer.w.shape[1], dtype=torch.int64),
        0,
    )
    bias = torch.from_numpy(layer.bias) if with_bias else None
    return torch.ops.quantized.linear_prepack(weight, bias)


def dynamic(engine: str, layers: list[Layer]) -> Loop:
    """float32 in and out, quantized on the fly."""
    torch.backends.quantized.engine = engine
    operands = [(torch.from_numpy(layer.x), quantized_weight(layer, False)) for layer in layers]
    return Loop(torch.ops.quantized.linear_dynamic, operands)
