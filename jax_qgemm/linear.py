"""Products of activations with packed weights: dot (float in, float out) and quantized_linear."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_qgemm import errors, reference
from jax_qgemm.errors import describe
from jax_qgemm.packing import check_packed
from jax_qgemm.primitives.gemm import gemm
from jax_qgemm.quantization import zero_point_or_none
from jax_qgemm.row_parallel import RowParallelWeight
from jax_qgemm.row_parallel import product as row_parallel_product
from jax_qgemm.types import GemmSpec, PackedWeight, QuantizedArray


def dot(
    x,
    w: PackedWeight | RowParallelWeight,
    *,
    bias=None,
    residual=None,
    activation=None,
    preferred_element_type=None,
):
    """`activation(x @ w + bias + residual)` with a packed weight.

    With an int8 weight a float x is quantized on the fly to uint8, each row with a scale and zero
    point of its own, as `quantize(x, "uint8", channelwise_axes=...)` does; a QuantizedArray is
    taken as it is. With a weight of floats ("fp16", "bf16"), or of "int8:weight_only", x stays
    float, and float32 sums add up in the order of K: a row has the same result in any batch. With
    blocks ("int4", "int8_blocks") it is quantized to int8, symmetrically, each row with a scale per
    block. bfloat16 x with a "bf16" weight is multiplied by pairs where the CPU has AVX512_BF16 or
    AMX, float16 x with an "fp16" weight where it has AMX_FP16: the products whose last bits depend
    on the CPU, and in which bfloat16's subnormal numbers count as zeros.

    Differentiable, to any order, in float x, bias and residual, and in scales that are per tensor,
    row or channel. The cotangent of x is that of the result times the transpose of the weight, from
    the packed weight, in float32 sums; where x is quantized on the fly its rounding counts as the
    identity.

    Args:
      x: float32, bfloat16 or float16 (..., K), or, where it need not stay float, QuantizedArray
        (..., K) with one scale per tensor or per row.
      w: PackedWeight (K, N), or a stack of them (*B, K, N), made by jax.vmap or jax.tree.map. x is
        then (*B, M, K), or (M, K) for all, the result (*B, M, N) and bias [N] or (*B, N): all
        products in one call. Or RowParallelWeight (K, N).
      bias: None, or float32, bfloat16 or float16 [N].
      residual: None, or float32, bfloat16 or float16 (..., N), the shape of the result.
      activation: None, "relu", "gelu" (by the error function), "gelu_tanh" (its approximation by
        tanh) or "silu". Computed in float32, at most 2 units in the last place off.
      preferred_element_type: float32, bfloat16 or float16, the dtype of the result. Default: x's
        dtype; float32 for a QuantizedArray.

    Returns:
      (..., N). Where x is quantized a row of it that holds NaN or Inf gives a row of NaN, and one
      whose values span less than 255 times the smallest normal float32 (3e-36) counts as zeros.
      Scales come after the sums of what shares them, which overflow for |x| beyond 3e38 / (127 K)
      where x stays float, beyond 1e35 with weights in blocks.

    Raises:
      TypeError: an argument of a wrong type or dtype.
      ValueError: shapes that do not match, unknown activation, newer packed format.
      NotImplementedError: differentiated in anything else.
    """
    x, out_dtype = _float_result("dot", x, preferred_element_type)
    if isinstance(w, RowParallelWeight):
        return _row_parallel("dot", x, w, bias, residual, activation, out_dtype)
    check_packed("dot", "w", w, stacks=True)
    return _linear("dot", x, w, bias, residual, activation, out_dtype)


def ragged_dot(
    x, w: PackedWeight, group_sizes, *, bias=None, activation=None, preferred_element_type=None
):
    """Groups of rows of x, each times a weight of its own, as in a mixture of experts.

    The counterpart of `jax.lax.ragged_dot`, differentiable as `dot` is: row m of the result is
    `activation(x[m] @ w[g] + bias)` for the group g that it belongs to; the groups lie one after
    the other.

    Args:
      x: float32, bfloat16 or float16 (M, K), or QuantizedArray (M, K), as in `dot`.
      w: stack of packed weights (G, K, N), `jax.vmap(pack_weight)(kernels)`.
      group_sizes: integers [G], rows of each group. Their values are not checked: a negative one
        counts as 0, and rows beyond M do not count.
      bias: None, or float32, bfloat16 or float16, [N] or (G, N).
      activation, preferred_element_type: as in `dot`.

    Returns:
      (M, N). Rows behind the last group are 0.

    Raises:
      TypeError: an argument of a wrong type or dtype.
      ValueError: shapes that do not match, unknown activation, newer packed format.
    """
    name = "ragged_dot"
    x, out_dtype = _float_result(name, x, preferred_element_type)
    check_packed(name, "w", w, stacks=True)
    if len(w.shape) != 3:
        raise ValueError(f"{name}: w must be a stack of weights (G, K, N), got {describe(w)}")
    if x.ndim != 2:
        raise ValueError(f"{name}: x must have 2 dimensions (M, K), got {describe(x)}")
    if isinstance(group_sizes, np.ndarray) and group_sizes.dtype.kind in "iu":
        group_sizes = errors.saturated_int32(group_sizes)  # before JAX lets it wrap
    group_sizes = errors.as_array(name, "group_sizes", group_sizes)
    if not jnp.issubdtype(group_sizes.dtype, jnp.integer):
        raise TypeError(f"{name}: group_sizes must be integers, got {describe(group_sizes)}")
    if group_sizes.shape != w.shape[:1]:
        raise ValueError(
            f"{name}: group_sizes has shape {group_sizes.shape}, expected {w.shape[:1]}, one for "
            f"each weight (w: {describe(w)})"
        )
    _check(name, x, w, bias, None, activation, ragged=True)
    if w.shape[0] == 0:
        return jnp.zeros((x.shape[0], w.shape[2]), out_dtype)
    sizes = jnp.clip(errors.saturated_int32(group_sizes), 0, x.shape[0])
    return _product(name, x, w, bias, None, activation, out_dtype, group_sizes=sizes)


def _float_result(function: str, x, preferred_element_type):
    """x checked, and the name of the result's dtype."""
    if isinstance(x, QuantizedArray):
        x = errors.check_quantized(function, "x", x)
    else:
        x = errors.float_array(function, "x", x)
    out_dtype = x.dtype if preferred_element_type is None else preferred_element_type
    try:
        out_dtype = np.dtype(out_dtype).name
    except (TypeError, ValueError):
        out_dtype = str(out_dtype)
    if out_dtype not in errors.FLOATS:
        choices = errors.choices(errors.FLOATS)
        raise ValueError(f"{function}: preferred_element_type must be {choices}, got {out_dtype}")
    return x, out_dtype


def quantized_linear(
    x: QuantizedArray,
    w: PackedWeight,
    *,
    bias=None,
    residual=None,
    activation=None,
    out_scale,
    out_zero_point=0,
    out_qtype=None,
) -> QuantizedArray:
    """`quantize(activation(x @ w + bias + residual), out_qtype, scale=out_scale, …)`, fused.

    Args:
      x: QuantizedArray (..., K) with one scale per tensor or per row.
      w, bias, residual, activation: as in `dot`.
      out_scale: the scale of the result: a float scalar, or float32 of shape (N,) or (1, …, 1, N)
        with one scale for each column.
      out_zero_point: integer scalar in the range of out_qtype; a traced one is clamped to it.
      out_qtype: "int8" or "uint8"; default: x's.

    Returns:
      QuantizedArray (..., N), per tensor, or per column: scale and zero_point then are of its rank.

    Raises:
      TypeError: an argument of a wrong type or dtype.
      ValueError: shapes that do not match, unknown activation or qtype, out_scale or
        out_zero_point outside their range, newer packed format.
      NotImplementedError: differentiated.
    """
    if not isinstance(x, QuantizedArray):
        raise TypeError(
            f"quantized_linear: x must be a QuantizedArray, got {describe(x)}; use "
            "jax_qgemm.quantize, or jax_qgemm.dot for float x"
        )
    name = "quantized_linear"
    x = errors.check_quantized(name, "x", x)
    out_qtype = x.qtype if out_qtype is None else errors.qtype_name(name, "out_qtype", out_qtype)
    out_scale = errors.scale_array(name, "out_scale", out_scale)
    zero_point = zero_point_or_none(name, "out_zero_point", out_zero_point, out_qtype)
    out_zero = jnp.int32(0) if zero_point is None else zero_point
    if out_zero.shape != ():
        raise ValueError(
            f"{name}: out_zero_point has shape {out_zero.shape}, expected () (a scalar)"
        )
    check_packed(name, "w", w, stacks=True)
    if w.takes_floats or w.blocks is not None:
        raise TypeError(
            f"{name}: w must be of int8 or uint8, and not for weights only, got {w}; use "
            "jax_qgemm.dot"
        )
    n = w.shape[-1]
    rank = x.ndim if len(w.shape) == 2 else len(w.shape)
    full = (*(1,) * (rank - 1), n)
    if out_scale.shape not in ((), (n,), full):
        raise ValueError(
            f"{name}: out_scale has shape {out_scale.shape}, expected (), {(n,)} or {full}"
        )
    columns = out_scale.reshape(-1) if out_scale.ndim else out_scale
    q = _linear(name, x, w, bias, residual, activation, out_qtype, columns, out_zero)
    if out_scale.ndim:
        out_scale = out_scale.reshape(full)
        zero_point = None if zero_point is None else jnp.broadcast_to(zero_point, full)
    return QuantizedArray(q, out_scale, zero_point, out_qtype)


def _linear(function, x, w, bias, residual, *rest) -> jax.Array:
    """One product or, for a stack of weights, a batch of them. `rest`: as of `_product`."""
    batch = w.shape[:-2]
    if not batch:
        return _product(function, x, w, bias, residual, *rest)
    own_x = x.ndim == len(w.shape) and x.shape[:-2] == batch
    if not own_x and x.ndim != 2:
        dims = ", ".join(map(str, batch))
        raise ValueError(
            f"{function}: x must be (M, K) or ({dims}, M, K) for a stack of weights, got "
            f"{describe(x)} (w: {describe(w)})"
        )

    if bias is not None:
        bias = errors.float_array(function, "bias", bias)
    if residual is not None:
        residual = errors.float_array(function, "residual", residual)
    n = w.shape[-1]
    result = (*(batch if own_x else ()), *x.shape[-2:-1], n)
    for name, array, shapes in (
        ("bias", bias, ((n,), (*batch, n))),
        ("residual", residual, (result, (*batch, x.shape[-2], n))),
    ):
        if array is not None and array.shape not in shapes:
            raise ValueError(
                f"{function}: {name} has shape {array.shape}, expected "
                f"{errors.choices(map(str, dict.fromkeys(shapes)))} (x: {describe(x)}, w: "
                f"{describe(w)})"
            )
    if own_x and isinstance(x, QuantizedArray):
        _check_stack(function, x, batch)
    axes = (
        jax.tree.map(lambda leaf: 0 if leaf.ndim else None, x) if own_x else None,
        0,
        *(
            0 if array is not None and array.ndim == len(batch) + rank else None
            for array, rank in ((bias, 1), (residual, 2))
        ),
    )

    def product(*arguments):
        return _product(function, *arguments, *rest)

    for _ in batch:
        product = jax.vmap(product, in_axes=axes)
    return product(x, w, bias, residual)


def _check_stack(function: str, x: QuantizedArray, batch) -> None:
    """That each part of it, but scalars, has one for each product."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if leaf.ndim and leaf.shape[: len(batch)] != batch:
            raise ValueError(
                f"{function}: x{jax.tree_util.keystr(path)} has shape {leaf.shape}, expected "
                f"{batch} for its first dimensions, those of {describe(x)}"
            )


def _row_parallel(function, x, w, bias, residual, activation, out_dtype) -> jax.Array:
    """dot by a weight in parts of K; its epilogue is plain JAX."""
    check_packed(function, "w.parts", w.parts, stacks=True)
    if len(w.parts.shape) != 3:
        raise ValueError(
            f"{function}: w.parts must be a stack of weights (parts, K / parts, N), got "
            f"{describe(w.parts)}; make w by pack_row_parallel, use a stack of such by jax.vmap"
        )
    bias, residual = _check(function, x, w, bias, residual, activation)
    _check_form(function, x, w.parts)
    if isinstance(x, QuantizedArray):
        rows = {
            name: jnp.broadcast_to(getattr(x, name), (*x.shape[:-1], 1))
            for name, form in zip(("scale", "zero_point"), _scheme(function, x)[1], strict=True)
            if form == "row"
        }
        x = dataclasses.replace(x, **rows)

    def linear(x, part):
        return _product(function, x, part, None, None, None, "float32")

    y = row_parallel_product(linear, x, w)
    return reference.epilogue(y, bias, residual, str(activation or "none")).astype(out_dtype)


def _check(function, x, w, bias, residual, activation, ragged=False):
    """bias, float32, and residual, where shapes and the activation fit."""
    k, n = w.shape[-2:]
    if x.ndim == 0 or x.shape[-1] != k:
        found = x.shape[-1] if x.ndim else "no dimensions"
        raise ValueError(
            f"{function}: w has K={k} but x has {found} in its last dimension "
            f"(x: {describe(x)}, w: {describe(w)})"
        )
    known = isinstance(activation, str) and activation in reference.ACTIVATIONS
    if not (activation is None or known):
        names = ", ".join(map(repr, (None, *reference.ACTIVATIONS)))
        raise ValueError(f"{function}: activation must be one of {names}, got {activation!r}")
    if bias is not None:
        bias = errors.float_array(function, "bias", bias).astype(jnp.float32)
        shapes = ((n,),) if not ragged else ((n,), (w.shape[0], n))
        if bias.shape not in shapes:
            raise ValueError(
                f"{function}: bias has shape {bias.shape}, expected "
                f"{errors.choices(map(str, shapes))} (w: {describe(w)})"
            )
    if residual is not None:
        residual = errors.float_array(function, "residual", residual)
        expected = (*x.shape[:-1], n)
        if residual.shape != expected:
            raise ValueError(
                f"{function}: residual has shape {residual.shape}, expected {expected}, the shape "
                f"of the result (x: {describe(x)}, w: {describe(w)})"
            )
    return bias, residual


def _check_form(function, x, w: PackedWeight):
    """Refuses a quantized x where the weight takes floats."""
    if (w.takes_floats or w.blocks is not None) and isinstance(x, QuantizedArray):
        what = f"{w.qtype}{' (weight only)' if w.weight_only else ''}"
        raise TypeError(
            f"{function}: x must be float32, bfloat16 or float16 for a weight of {what}, got "
            f"{describe(x)}; use x.dequantize()"
        )


def _product(
    function,
    x,
    w,
    bias,
    residual,
    activation,
    out_dtype,
    out_scale=None,
    out_zero_point=None,
    group_sizes=None,
) -> jax.Array:
    """Check, describe the product as a GemmSpec, run it."""
    n = w.shape[-1]
    bias, residual = _check(
        function, x, w, bias, residual, activation, ragged=group_sizes is not None
    )
    is_float = not isinstance(x, QuantizedArray)
    _check_form(function, x, w)
    values, forms, parts = (x, ("none", "none"), (None, None)) if is_float else _scheme(function, x)
    plain = w.qtype in reference.QRANGE
    spec = GemmSpec(
        weights="int8" if plain else w.qtype,
        columns=None if plain else n,
        blocks=w.blocks,
        dynamic=is_float and not w.takes_floats,
        keeps_x=w.takes_floats,
        x_scale=forms[0],
        x_zero_point=forms[1],
        w_zero_point=w.zero_point is not None,
        bias=bias is not None,
        residual=residual is not None,
        activation=str(activation or "none"),
        out_dtype=out_dtype,
        group=w.group_size if plain else None,
        ragged=group_sizes is not None,
        rows=values.ndim - 1,
        out_scale="column" if out_scale is not None and out_scale.ndim else "tensor",
    )
    operands = {
        "x": values,
        "data": w.data,
        "w_scale": w.scale,
        "column_sums": w.column_sums,
        "x_scale": parts[0],
        "x_zero_point": parts[1],
        "w_zero_point": w.zero_point,
        "bias": bias,
        "residual": residual,
        "out_scale": out_scale,
        "out_zero_point": out_zero_point,
        "group_sizes": group_sizes,
    }
    return _run(operands, spec=spec)


@functools.partial(jax.jit, static_argnames="spec", inline=True)
def _run(operands, *, spec: GemmSpec):
    """gemm with a parameter for each row of x where there are such."""
    rows = operands["x"].shape[:-1]
    by_row = {
        name: jnp.broadcast_to(operands[name], (*rows, 1))[..., 0]
        for name in ("x_scale", "x_zero_point")
        if getattr(spec, name) == "row"
    }
    return gemm(spec, **(operands | by_row))


def _scheme(function: str, x: QuantizedArray):
    """Values of x, and whether its scale and zero point are "none", one per "tensor" or "row"."""
    if x.group_size:
        raise ValueError(
            f"{function}: x has scales per group; activations have one per tensor or per row"
        )
    rows = x.shape[:-1]
    forms, parts = [], []
    for name, part in (("scale", x.scale), ("zero_point", x.zero_point)):
        if part is None or part.shape == ():
            forms.append("none" if part is None else "tensor")
        elif errors.fits(part.shape, (*rows, 1)):
            forms.append("row")
        else:
            raise ValueError(
                f"{function}: x.{name} has shape {part.shape}, expected () (per tensor) or "
                f"{(*rows, 1)} (per row) (x: {describe(x)})"
            )
        parts.append(part)
    return x.qvalue, forms, parts
