"""Flax nnx: `QLinear`, a linear layer with packed weights, and `quantize_` for whole models."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_qgemm import errors
from jax_qgemm.flax.promotion import promoted_dot
from jax_qgemm.flax.report import LayerReport, QuantizationReport, tree_bytes
from jax_qgemm.flax.sharding import KernelSharding, of_kernel
from jax_qgemm.packing import check_packed, pack_weight
from jax_qgemm.row_parallel import RowParallelWeight, pack_row_parallel
from jax_qgemm.types import PackedWeight

FilterFn = Callable[[tuple[str | int, ...], nnx.Module], bool]

_KERNEL_INIT = nnx.initializers.lecun_normal()
_BIAS_INIT = nnx.initializers.zeros_init()
# An nnx.Linear that replaces one of these computes something QLinear does not.
_HOOKS = {
    name: inspect.signature(nnx.Linear.__init__).parameters[name].default
    for name in ("dot_general", "promote_dtype", "preferred_element_type")
}
_UNSUPPORTED = (nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose, nnx.Embed)
_LAYERS = (nnx.Linear, *_UNSUPPORTED)
_NO_VALUES = "has only shapes, no values (nnx.eval_shape): quantize after the weights are loaded"
_PROGRESS_BYTES = 1 << 30  # a smaller model is packed before a progress bar could be read


class QuantizedParam(nnx.Variable):
    """A part of a quantized weight. Not an `nnx.Param`: filters for parameters pass it by."""


class QLinear(nnx.Module):
    """`nnx.Linear` with quantized, packed weights: x (…, in) → (…, out), with its dtypes.

    Activations are quantized per row on the fly, but with "fp16", "bf16" and "…:weight_only" (see
    `jax_qgemm.dot`). The weight lives in
    `QuantizedParam`s of plain arrays, the bias in an `nnx.Param`, so `nnx.split`, `nnx.state`
    and orbax treat the layer like any other.

    A kernel's sharding metadata (`nnx.with_partitioning`) goes with it: the parts of the packed
    weight are split by columns, in panels of 64, where the kernel was. Where it was by rows, over
    an axis of a known mesh of auto type, the weight is a `RowParallelWeight`.

    Gradients flow through it, to x and to the bias (see `jax_qgemm.dot`), so that what is in front
    of it can be trained. The weight stays as it is: train it as floats, through
    `jax_qgemm.fake_quantize`, and quantize it afterwards.

    Args:
      in_features: K, the size of x's last axis.
      out_features: N, the size of the result's last axis.
      use_bias: add a bias (default True).
      qtype: format of the weight, as for `jax_qgemm.pack_weight`.
      dtype: of the result; default: what x, param_dtype and the bias promote to. Any real x is
        taken, and computed with in float32, bfloat16 or float16.
      param_dtype: dtype in which kernel and bias are initialised: float32, bfloat16 or float16.
      kernel_init, bias_init: initialisers, as of `nnx.Linear`.
      rngs: rng keys, of which "params" is used.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        qtype: str = "int8",
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        kernel_init: nnx.Initializer = _KERNEL_INIT,
        bias_init: nnx.Initializer = _BIAS_INIT,
        rngs: nnx.Rngs,
    ):
        in_features = errors.size("QLinear", "in_features", in_features)
        out_features = errors.size("QLinear", "out_features", out_features)
        kernel = kernel_init(rngs.params(), (in_features, out_features), param_dtype)
        packed, sharding = _pack(kernel, qtype)
        self.data = QuantizedParam(packed.data, **sharding.metadata(packed.data))
        for name in ("scale", "zero_point", "column_sums"):
            part = getattr(packed, name)
            if part is not None:
                part = QuantizedParam(part, **sharding.metadata(part))
            setattr(self, name, nnx.data(part))
        # Its numbers are its sizes: shapes, unlike values, are known while tracing, so that data of
        # another format, or of a newer release, is refused under jit too.
        self.format = QuantizedParam(jnp.zeros(packed._format, jnp.uint8))
        self.bias = nnx.data(
            nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        )
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.row_parts = sharding.parts
        self.qtype = packed.qtype
        self.group_size = packed.group_size
        self.channelwise = packed.channelwise
        self.weight_only = packed.weight_only
        self.scale_dtype = packed.scale_dtype
        self.minimum = packed.minimum
        self.dtype = dtype
        self.param_dtype = param_dtype

    @classmethod
    def from_linear(cls, linear: nnx.Linear, qtype: str = "int8") -> "QLinear":
        """The quantized form of a float layer. They share the bias, and `linear` stays as it is.

        Raises `TypeError` for what is not exactly an `nnx.Linear` and `ValueError` for one that
        computes what `QLinear` cannot (stacked kernels, float64, custom `dot_general`, …) or that
        has only shapes, no values yet.
        """
        if not isinstance(linear, nnx.Linear):
            raise TypeError(f"from_linear: expected an nnx.Linear, got {type(linear).__name__}")
        if reason := _why_not(linear):
            raise ValueError(f"from_linear: cannot quantize this layer: {reason}")
        if _is_abstract(linear):
            raise ValueError(f"from_linear: linear {_NO_VALUES}")
        in_features, out_features = linear.kernel.shape
        layer = cls(
            in_features,
            out_features,
            use_bias=False,
            qtype=qtype,
            dtype=linear.dtype,
            param_dtype=linear.kernel.dtype,  # not linear.param_dtype: it may have been cast since
            kernel_init=lambda *_: linear.kernel,  # with its metadata
            rngs=nnx.Rngs(0),
        )
        layer.use_bias, layer.bias = linear.bias is not None, nnx.data(linear.bias)
        return layer

    @classmethod
    def from_weight(
        cls, weight: PackedWeight, *, dtype: jax.typing.DTypeLike | None = None
    ) -> "QLinear":
        """A layer without a bias that has a packed weight, as of `jax_qgemm.formats`, as it is.

        Raises `TypeError` for what is no `PackedWeight`, `ValueError` for a stack of them.
        """
        check_packed("from_weight", "weight", weight)
        return cls(
            *weight.shape,
            use_bias=False,
            dtype=dtype,
            kernel_init=lambda *_: weight,
            rngs=nnx.Rngs(0),
        )

    @property
    def weight(self) -> PackedWeight | RowParallelWeight:
        """The packed weight (in_features, out_features), as `jax_qgemm.dot` takes it."""

        def array(part):
            return None if part is None else part[...]

        packed = PackedWeight(
            data=self.data[...],
            scale=array(self.scale),
            zero_point=array(self.zero_point),
            column_sums=array(self.column_sums),
            matrix_shape=(self.in_features // self.row_parts, self.out_features),
            qtype=self.qtype,
            channelwise=self.channelwise,
            format_version=self.format.shape[-3],
            group_size=self.group_size,
            weight_only=self.weight_only,
            scale_dtype=self.scale_dtype,
            minimum=self.minimum,
        )
        packed._check_format("QLinear", self.format.shape[-3:])
        return packed if self.row_parts == 1 else RowParallelWeight(packed)

    def __call__(
        self,
        x: jax.typing.ArrayLike,
        out_sharding: None = None,
        *,
        residual: jax.Array | None = None,
        activation: str | None = None,
    ) -> jax.Array:
        """x @ weight + bias + residual, then `activation`, as in `jax_qgemm.dot`, fused:
        (…, in) → (…, out)."""
        if out_sharding is not None:
            raise NotImplementedError(
                f"QLinear: out_sharding must be None, got {out_sharding}: a quantized layer cannot "
                "choose the sharding of its result yet"
            )
        bias = None if self.bias is None else self.bias[...]
        return promoted_dot(
            "QLinear", x, self.weight, bias, activation, self.dtype, self.param_dtype, residual
        )


def _pack(kernel, qtype: str) -> tuple[PackedWeight, KernelSharding]:
    """What an initialiser made, packed; in parts of K, stacked, where its rows are split."""
    if isinstance(kernel, PackedWeight):
        return kernel, KernelSharding()
    if not isinstance(kernel, nnx.Variable):
        kernel = nnx.Param(kernel)  # also of an array with metadata, as of nnx.with_partitioning
    sharding = of_kernel(kernel, qtype)
    if sharding.parts == 1:
        return pack_weight(kernel[...], qtype), sharding
    return pack_row_parallel(kernel[...], qtype, parts=sharding.parts).parts, sharding


def quantize_(
    model: nnx.Module, config: str = "int8", filter_fn: FilterFn | None = None
) -> QuantizationReport:
    """Replaces, in place, every `nnx.Linear` of `model` by a `QLinear`.

    Layers are found in modules, `nnx.List`, `nnx.Dict`, lists, tuples and dicts; a layer that is
    used in several places is replaced once, by one object.

    Args:
      model: any nnx model; it is changed.
      config: format of the weights, as for `jax_qgemm.pack_weight`.
      filter_fn: `filter_fn(path, layer)` with a path such as ("blocks", 0, "up"); a layer for
        which it returns False stays as it is.

    Returns:
      A report; `print` it for a table of what was done, what was skipped and why.

    Raises:
      TypeError: `model` is not an nnx module, or is itself a linear layer, which cannot be
        replaced in place.
      ValueError: unknown `config`, or `model` has only shapes (`nnx.eval_shape`), no values yet.
      Whatever is raised, by `filter_fn` too, `model` is then as it was.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"quantize_: model: expected an nnx.Module, got {type(model).__name__}")
    if isinstance(model, nnx.Linear):
        raise TypeError(
            "quantize_: model is itself an nnx.Linear, which cannot be replaced in place: "
            "use QLinear.from_linear(model)"
        )
    config = str(errors.weight_format("quantize_", "config", config))
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"quantize_: filter_fn must be a function or None, got {filter_fn!r}")
    before = tree_bytes(nnx.state(model))
    decisions = _decide(model, filter_fn)
    advance = _progress(before, len(decisions))
    replacements: dict[int, nnx.Module] = {}
    layers = []
    for layer, path, reason in decisions:
        new = layer if reason else QLinear.from_linear(layer, config)
        replacements[id(layer)] = new
        layers.append(_layer_report(layer, new, path, reason))
        advance()
    _Walk(lambda layer, path, owner: replacements[id(layer)]).visit(model)
    return QuantizationReport(config, tuple(layers), before, tree_bytes(nnx.state(model)))


def _decide(
    model: nnx.Module, filter_fn: FilterFn | None
) -> list[tuple[nnx.Module, tuple[str | int, ...], str]]:
    """(layer, path, why it is skipped or "") of each linear layer, once; changes nothing."""
    found: dict[int, tuple[nnx.Module, tuple[str | int, ...], str]] = {}

    def note(layer: nnx.Module, path: tuple[str | int, ...], owner: str) -> nnx.Module:
        if id(layer) not in found:
            reason = owner or _why_not(layer)
            if not reason and filter_fn is not None and not filter_fn(path, layer):
                reason = "filter_fn"
            if not reason and _is_abstract(layer):
                raise ValueError(f"quantize_: model: layer {'/'.join(map(str, path))} {_NO_VALUES}")
            found[id(layer)] = layer, path, reason
        return layer

    _Walk(note).visit(model)
    # Layers in containers of other types, which nnx sees and the walk does not.
    for path, node in nnx.iter_graph(model):
        if isinstance(node, _LAYERS):
            note(node, path, "held by a container that cannot be changed in place")
    return list(found.values())


class _Walk:
    """One walk over a model that puts `swap(layer, path, owner)` in the place of each layer.

    `owner` says why nothing at that place may be replaced, or is "".
    """

    def __init__(self, swap: Callable[[nnx.Module, tuple[str | int, ...], str], nnx.Module]):
        self.swap = swap
        self.seen: dict[int, Any] = {}  # the objects are kept, or ids recur

    def visit(self, node: Any, path: tuple[str | int, ...] = (), owner: str = "") -> Any:
        """What belongs in the place of `node`."""
        if isinstance(node, _LAYERS):
            return self.swap(node, path, owner)
        if isinstance(node, tuple):
            items = [self.visit(child, (*path, i), owner) for i, child in enumerate(node)]
            if all(new is old for new, old in zip(items, node, strict=True)):
                return node
            return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
        if not isinstance(node, nnx.Pytree | list | dict) or id(node) in self.seen:
            return node
        self.seen[id(node)] = node
        if isinstance(node, nnx.WeightNorm | nnx.SpectralNorm):
            owner = f"{type(node).__name__} rewrites its kernel at every call"
        for key, child in _children(node):
            new = self.visit(child, (*path, key), owner)
            if new is child:
                continue
            if isinstance(node, nnx.Pytree):
                setattr(node, str(key), nnx.data(new))
            else:
                node[key] = new
        return node


def _children(node: Any) -> list[tuple[str | int, Any]]:
    """(key, child) of a module, list or dict."""
    if isinstance(node, nnx.List | list):
        return list(enumerate(node))
    items = node if isinstance(node, dict) else vars(node)
    return [(key, child) for key, child in items.items() if not str(key).startswith("_pytree__")]


def _why_not(layer: nnx.Module) -> str:
    """Why `layer` has no quantized form; "" if it has one."""
    name = type(layer).__name__
    if isinstance(layer, _UNSUPPORTED):
        return f"there is no quantized {name} yet"
    if type(layer) is not nnx.Linear:
        return f"{name} is a subclass of nnx.Linear, with a meaning of its own"
    for hook, default in _HOOKS.items():
        if getattr(layer, hook, default) is not default:
            return f"it has its own {hook}"
    kernel = layer.kernel
    if kernel.ndim != 2:
        return f"its kernel has {kernel.ndim} axes, not 2 (stacked layers?)"
    for what, dtype in (
        ("computes in", layer.dtype or kernel.dtype),
        ("is stored in", kernel.dtype),
    ):
        if jnp.dtype(dtype).name not in errors.FLOATS:
            return f"it {what} {jnp.dtype(dtype).name}, not {errors.choices(errors.FLOATS)}"
    return ""


def _is_abstract(layer: nnx.Linear) -> bool:
    """Whether `layer` is of `nnx.eval_shape`."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(layer)))


def _layer_report(
    old: nnx.Module, new: nnx.Module, path: tuple[str | int, ...], reason: str
) -> LayerReport:
    kernel = getattr(old, "kernel", None)
    return LayerReport(
        path="/".join(map(str, path)),
        layer=type(old).__name__,
        shape=() if kernel is None else kernel.shape,
        skipped=reason,
        bytes_before=tree_bytes(nnx.state(old)),
        bytes_after=tree_bytes(nnx.state(new)),
    )


def _progress(nbytes: int, count: int) -> Callable[[], None]:
    """A function to call after each of `count` layers: a progress bar, if big and rich is there."""
    try:
        from rich.progress import track
    except ModuleNotFoundError:
        nbytes = 0
    if nbytes < _PROGRESS_BYTES:
        return lambda: None
    bar = iter(track(range(count + 1), "Quantizing"))
    next(bar)
    return lambda: next(bar, None)
