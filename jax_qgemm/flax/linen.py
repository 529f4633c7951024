"""Flax linen: `QDense`, a dense layer with packed weights, and `quantize_params`."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import core, serialization

from jax_qgemm import errors
from jax_qgemm.flax.promotion import promoted_dot
from jax_qgemm.flax.report import LayerReport, QuantizationReport, tree_bytes
from jax_qgemm.flax.sharding import pack_boxed
from jax_qgemm.packing import pack_weight
from jax_qgemm.types import PackedWeight

_Containers = Mapping | list | tuple
FilterFn = Callable[[tuple[str | int, ...], jax.Array], bool]


class QDense(nn.Module):
    """`nn.Dense` with a quantized, packed kernel: inputs (…, in) → (…, features), with its dtypes.

    Parameters have the names of `nn.Dense`: "kernel" is a `PackedWeight` (in, features), "bias"
    float (features,). `quantize_params` makes them from a float checkpoint; a float kernel works
    too, but is then packed at every call, with one warning. Activations are quantized per row on
    the fly (see `jax_qgemm.dot`). Gradients flow to the inputs and to the bias; a packed kernel
    stays as it is.

    Attributes:
      features: N, the size of the result's last axis.
      use_bias: add a bias (default True).
      dtype: of the result; default: what the inputs and the parameters promote to. Any real inputs
        are taken, and computed with in float32, bfloat16 or float16.
      param_dtype: dtype in which kernel and bias are initialised. A packed kernel does not know
        the dtype it had: it promotes as the bias does, or as param_dtype where there is no bias.
      kernel_init, bias_init: initialisers, as of `nn.Dense`.
      qtype: format of the weight, as for `jax_qgemm.pack_weight`.
    """

    features: int
    use_bias: bool = True
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.Dense.kernel_init
    bias_init: nn.initializers.Initializer = nn.Dense.bias_init
    qtype: str = "int8"

    @nn.compact
    def __call__(self, inputs: jax.Array, *, activation: str | None = None) -> jax.Array:
        """inputs @ kernel + bias, then `activation` as in `jax_qgemm.dot`, fused."""
        inputs = errors.as_array("QDense", "inputs", inputs)
        if inputs.ndim == 0:
            raise ValueError(f"QDense: inputs must be (..., K), got {errors.describe(inputs)}")
        kernel, param_dtype = self._kernel(inputs.shape[-1])
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            bias = jnp.asarray(bias)
        if param_dtype is None:
            param_dtype = self.param_dtype if bias is None else bias.dtype
        return promoted_dot("QDense", inputs, kernel, bias, activation, self.dtype, param_dtype)

    def _kernel(self, in_features: int) -> tuple[PackedWeight, np.dtype | None]:
        """The kernel, packed, and its dtype where it was stored as floats."""
        float_args = (in_features, self.features), self.param_dtype
        if self.has_variable("params", "kernel"):
            stored = nn.meta.unbox(self.get_variable("params", "kernel"))
            if not isinstance(stored, PackedWeight):
                _warn_packed_at_every_call()
                kernel = self.param("kernel", self.kernel_init, *float_args)
                return pack_weight(kernel, self.qtype), kernel.dtype
            if stored.shape != float_args[0]:
                raise ValueError(f"QDense: kernel is {stored}, expected shape {float_args[0]}")
            return stored, None  # of any format, whatever qtype says

        def init(key):
            return pack_boxed(self.kernel_init(key, *float_args), self.qtype)

        return self.param("kernel", init), None


def quantize_params(
    params: Mapping[str, Any] | list | tuple,
    filter_fn: FilterFn | None = None,
    *,
    qtype: str = "int8",
) -> tuple[Any, QuantizationReport]:
    """The parameters of a model with `nn.Dense` → those of the same model with `QDense`.

    Every {"kernel", "bias"} (or {"kernel"}) whose kernel is a float matrix (in, out) gets a packed
    kernel; all else is passed on as it is. A tree does not say which module owns a kernel: keep
    those of layers that stayed `nn.Dense` out with `filter_fn`.

    Args:
      params: nested dicts, lists and tuples of arrays, such as `variables["params"]` or the
        variables themselves.
      filter_fn: `filter_fn(path, kernel)` with a path such as ("encoder", 0, "Dense_0"); a
        kernel for which it returns False stays float.
      qtype: format of the weights, as for `jax_qgemm.pack_weight`.

    Returns:
      (new params, report); `print` the report for a table of what was done and why not.

    Raises:
      TypeError: `params` is no dict, list or tuple.
      ValueError: unknown `qtype`, or a kernel that has only a shape (`jax.eval_shape`).
    """
    if not isinstance(params, _Containers):
        raise TypeError(
            "quantize_params: params: expected nested dicts, lists or tuples, "
            f"got {type(params).__name__}"
        )
    qtype = str(errors.weight_format("quantize_params", "qtype", qtype))
    layers: list[LayerReport] = []

    def convert(node: Any, path: tuple[str | int, ...]) -> Any:
        if not isinstance(node, _Containers):
            return node
        if not isinstance(node, Mapping):
            items = [convert(child, (*path, i)) for i, child in enumerate(node)]
            return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
        new = {key: convert(child, (*path, key)) for key, child in node.items()}
        if "kernel" in node and not isinstance(node["kernel"], _Containers | PackedWeight):
            kernel = nn.meta.unbox(node["kernel"])
            name = "/".join(map(str, path))
            reason = _why_not(node, kernel)
            if not reason and filter_fn is not None and not filter_fn(path, kernel):
                reason = "filter_fn"
            if not reason:
                if isinstance(kernel, jax.ShapeDtypeStruct):
                    raise ValueError(
                        f"quantize_params: params: the kernel of {name} has only a shape, no "
                        "values: quantize after the weights are loaded"
                    )
                new["kernel"] = pack_boxed(node["kernel"], qtype)
            sizes = tree_bytes(node), tree_bytes(new)
            layers.append(LayerReport(name, "kernel", getattr(kernel, "shape", ()), reason, *sizes))
        return core.freeze(new) if isinstance(node, core.FrozenDict) else new

    result = convert(params, ())
    return result, QuantizationReport(qtype, tuple(layers), tree_bytes(params), tree_bytes(result))


def _why_not(group: Mapping[str, Any], kernel: jax.Array) -> str:
    """Why the parameters of one layer have no `QDense` form; "" if they have one."""
    if others := sorted(group.keys() - {"kernel", "bias"}):
        return f"not a Dense layer: it also has {', '.join(others)}"
    if not hasattr(kernel, "dtype"):
        return f"its kernel is {errors.describe(kernel)}, not an array"
    if kernel.ndim != 2:
        return f"its kernel has {kernel.ndim} axes, not 2"
    if kernel.dtype.name not in errors.FLOATS:
        return f"its kernel is {kernel.dtype.name}, not {errors.choices(errors.FLOATS)}"
    return ""


@functools.cache
def _warn_packed_at_every_call() -> None:
    warnings.warn(
        "QDense got a float kernel and packs it at every call, which costs more than it saves. "
        "Pack it once: params, report = jax_qgemm.flax.linen.quantize_params(params)",
        stacklevel=4,
    )


_PARTS = ("data", "scale", "zero_point", "column_sums")


def _to_state_dict(weight: PackedWeight) -> dict[str, Any]:
    parts = {name: getattr(weight, name) for name in _PARTS}
    state = {name: serialization.to_state_dict(p) for name, p in parts.items() if p is not None}
    # An array, so that a flattened state dict holds nothing else.
    return state | {"format": np.asarray([*weight._format, *weight.matrix_shape], np.int32)}


def _from_state_dict(weight: PackedWeight, state: dict[str, Any]) -> PackedWeight:
    where = "from_state_dict"
    if "format" not in state:
        raise ValueError(f"{where}: no format in the state of a packed kernel")
    *found, k, n = np.asarray(state["format"]).tolist()
    weight._check_format(where, found)
    if (k, n) != weight.matrix_shape:
        raise ValueError(f"{where}: the data is that of a {k}×{n} kernel, expected {weight!r}")
    parts = {
        name: serialization.from_state_dict(getattr(weight, name), state[name])
        for name in _PARTS
        if name in state
    }
    missing = dict.fromkeys(set(_PARTS) - set(parts))
    return dataclasses.replace(weight, **parts, **missing, format_version=found[0])


# So that flax.serialization (to_bytes, msgpack, flax.training.checkpoints) knows packed kernels.
serialization.register_serialization_state(PackedWeight, _to_state_dict, _from_state_dict)
