"""Flax linen: `QDense`, a dense layer with packed weights, and `quantize_params`."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import core, serialization

from jax_qgemm.flax.report import LayerReport, QuantizationReport, tree_bytes
from jax_qgemm.linear import dot
from jax_qgemm.packing import pack_weight
from jax_qgemm.types import PackedWeight

FilterFn = Callable[[tuple[str, ...], jax.Array], bool]


class QDense(nn.Module):
    """`nn.Dense` with a quantized, packed kernel: inputs (…, in) → (…, features), in their dtype.

    Parameters have the names of `nn.Dense`: "kernel" is a `PackedWeight` (in, features), "bias"
    float (features,). `quantize_params` makes them from a float checkpoint; a float kernel works
    too, but is then packed at every call, with one warning. Activations are quantized per row on
    the fly (see `jax_qgemm.dot`).

    Attributes:
      features: N, the size of the result's last axis.
      use_bias: add a bias (default True).
      dtype: inputs are cast to it first; default: as they come, float32 or bfloat16.
      param_dtype: dtype in which kernel and bias are initialised.
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
        """inputs @ kernel + bias, then `activation` (None or "relu"), fused."""
        inputs = jnp.asarray(inputs, self.dtype)
        kernel = self._kernel(inputs.shape[-1])
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return dot(inputs, kernel, bias=bias, activation=activation)

    def _kernel(self, in_features: int) -> PackedWeight:
        float_args = (in_features, self.features), self.param_dtype
        if self.has_variable("params", "kernel"):
            stored = nn.meta.unbox(self.get_variable("params", "kernel"))
            if not isinstance(stored, PackedWeight):
                _warn_packed_at_every_call()
                return pack_weight(self.param("kernel", self.kernel_init, *float_args), self.qtype)
            if stored.shape != float_args[0]:
                raise ValueError(f"QDense: kernel is {stored}, expected shape {float_args[0]}")

        def init(key):
            return pack_weight(nn.meta.unbox(self.kernel_init(key, *float_args)), self.qtype)

        return self.param("kernel", init)


def quantize_params(
    params: Mapping[str, Any], filter_fn: FilterFn | None = None, *, qtype: str = "int8"
) -> tuple[Any, QuantizationReport]:
    """The parameters of a model with `nn.Dense` → those of the same model with `QDense`.

    Every {"kernel", "bias"} (or {"kernel"}) whose kernel is a float matrix (in, out) gets a packed
    kernel; all else is passed on as it is. A tree does not say which module owns a kernel: keep
    those of layers that stayed `nn.Dense` out with `filter_fn`.

    Args:
      params: nested dicts of arrays, such as `variables["params"]` or the variables themselves.
      filter_fn: `filter_fn(path, kernel)` with a path such as ("encoder", "Dense_0"); a kernel
        for which it returns False stays float.
      qtype: format of the weights, as for `jax_qgemm.pack_weight`.

    Returns:
      (new params, report); `print` the report for a table of what was done and why not.
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            f"quantize_params: params: expected nested dicts, got {type(params).__name__}"
        )
    layers: list[LayerReport] = []

    def convert(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, Mapping):
            return node
        new = {key: convert(child, (*path, key)) for key, child in node.items()}
        if "kernel" in node and not isinstance(node["kernel"], Mapping | PackedWeight):
            kernel = nn.meta.unbox(node["kernel"])
            reason = _why_not(node, kernel)
            if not reason and filter_fn is not None and not filter_fn(path, kernel):
                reason = "filter_fn"
            if not reason:
                new["kernel"] = pack_weight(kernel, qtype)
            sizes = tree_bytes(node), tree_bytes(new)
            layers.append(LayerReport("/".join(path), "kernel", kernel.shape, reason, *sizes))
        return core.freeze(new) if isinstance(node, core.FrozenDict) else new

    result = convert(params, ())
    return result, QuantizationReport(qtype, tuple(layers), tree_bytes(params), tree_bytes(result))


def _why_not(group: Mapping[str, Any], kernel: jax.Array) -> str:
    """Why the parameters of one layer have no `QDense` form; "" if they have one."""
    if others := sorted(group.keys() - {"kernel", "bias"}):
        return f"not a Dense layer: it also has {', '.join(others)}"
    if kernel.ndim != 2:
        return f"its kernel has {kernel.ndim} axes, not 2"
    if kernel.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its kernel is {kernel.dtype.name}: float32 and bfloat16 are supported"
    return ""


@functools.cache
def _warn_packed_at_every_call() -> None:
    warnings.warn(
        "QDense got a float kernel and packs it at every call, which costs more than it saves. "
        "Pack it once: params, report = jax_qgemm.flax.linen.quantize_params(params)",
        stacklevel=4,
    )


def _to_state_dict(weight: PackedWeight) -> dict[str, Any]:
    arrays = {name: getattr(weight, name) for name in ("data", "scale", "column_sums")}
    if weight.zero_point is not None:
        arrays["zero_point"] = weight.zero_point
    return arrays


def _from_state_dict(weight: PackedWeight, state: dict[str, Any]) -> PackedWeight:
    zero_point = state.get("zero_point")
    return PackedWeight(
        data=state["data"],
        scale=state["scale"],
        zero_point=zero_point,
        column_sums=state["column_sums"],
        matrix_shape=weight.matrix_shape,
        qtype=weight.qtype,
        channelwise=weight.channelwise,
    )


# So that flax.serialization (to_bytes, msgpack, flax.training.checkpoints) knows packed kernels.
serialization.register_serialization_state(PackedWeight, _to_state_dict, _from_state_dict)
