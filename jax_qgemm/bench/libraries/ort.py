"""ONNX Runtime: one graph of all layers, operands and results bound once.

The nodes are those that its optimizer makes of a model from `quantize_static` or
`quantize_dynamic`. The session's options are the defaults, apart from the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from jax_qgemm.bench.layers import INT4_GROUP, Layer
from jax_qgemm.bench.machine import threads

VERSION = f"onnxruntime {onnxruntime.__version__}"
# One pool for both programs: threads of a second one spin when they are not asked to.
onnxruntime.set_global_thread_pool_sizes(threads(), 1)
_OPSET, _IR_VERSION = 17, 8  # old enough for any runtime of today, fused nodes are contrib's


class _Session:
    """A program: `operator` on the operands of each layer, the first of them the graph's input."""

    def __init__(
        self,
        operator: str,
        operands: Callable[[Layer], tuple[np.ndarray, ...]],
        dtype: type,
        layers: list[Layer],
        **attributes: int,
    ):
        nodes, inputs, outputs, constants = [], [], [], []
        arrays, kind = [], helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        for i, layer in enumerate(layers):
            x, *rest = operands(layer)
            arrays.append(x)
            names = [f"{i}.{j}" for j in range(len(rest))]
            constants += map(numpy_helper.from_array, map(np.asarray, rest), names)
            nodes.append(
                helper.make_node(
                    operator, [f"x{i}", *names], [f"y{i}"], domain="com.microsoft", **attributes
                )
            )
            inputs.append(helper.make_tensor_value_info(f"x{i}", kind, x.shape))
            outputs.append(helper.make_tensor_value_info(f"y{i}", kind, layer.product.shape))
        versions = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=versions, ir_version=_IR_VERSION)

        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._bind(arrays, [layer.product.shape for layer in layers], dtype)
        self()

    def _bind(self, arrays: list[np.ndarray], shapes: list[tuple[int, ...]], dtype: type) -> None:
        self._binding = self._session.io_binding()
        make = onnxruntime.OrtValue
        self._inputs = [make.ortvalue_from_numpy(array) for array in arrays]
        self._outputs = [make.ortvalue_from_shape_and_type(shape, dtype) for shape in shapes]
        for i, (x, y) in enumerate(zip(self._inputs, self._outputs, strict=True)):
            self._binding.bind_ortvalue_input(f"x{i}", x)
            self._binding.bind_ortvalue_output(f"y{i}", y)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)

    @property
    def results(self) -> list[np.ndarray]:
        return [value.numpy() for value in self._outputs]


def _dynamic(layer: Layer) -> tuple[np.ndarray, ...]:
    return layer.x, layer.w_int8, layer.w_scale, _no_zero_points(layer)


def _static(layer: Layer) -> tuple[np.ndarray, ...]:
    """x, w, bias and result with scale and zero point; relu is the clip of the result at 0."""
    bias = np.rint(layer.bias / (layer.x_scale * layer.w_scale)).astype(np.int32)
    x = (layer.x_uint8, layer.x_scale, np.uint8(128))
    w = (layer.w_int8, layer.w_scale, _no_zero_points(layer))
    return *x, *w, bias, layer.out_scale, np.uint8(0)


def _int4(layer: Layer) -> tuple[np.ndarray, ...]:
    """x, then of each column and group 16 bytes of weights, the even ones in their low halves."""
    k, n = layer.w.shape
    groups = layer.w_int4_scale.shape[0]
    q = np.full((groups * INT4_GROUP, n), 8, np.uint8)
    q[:k] = layer.w_int4
    packed = (q[::2] | q[1::2] << 4).T.reshape(n, groups, INT4_GROUP // 2)
    return layer.x, packed, layer.w_int4_scale.astype(np.float32).T.reshape(-1)


def _int4_session(accuracy_level: int, layers: list[Layer]) -> _Session:
    k, n = layers[0].w.shape
    form = dict(K=k, N=n, bits=4, block_size=INT4_GROUP, accuracy_level=accuracy_level)
    return _Session("MatMulNBits", _int4, np.float32, layers, **form)


def _no_zero_points(layer: Layer) -> np.ndarray:
    return np.zeros(layer.w.shape[1], np.int8)


PROGRAMS = {
    "ort_dynamic": lambda layers: _Session("DynamicQuantizeMatMul", _dynamic, np.float32, layers),
    "ort_int4": functools.partial(_int4_session, 4),  # x as int8
    "ort_int4_float": functools.partial(_int4_session, 1),
    "ort_static": lambda layers: _Session("QGemm", _static, np.uint8, layers),
}
