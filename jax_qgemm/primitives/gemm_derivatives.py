"""Derivatives of gemm: JVP, transpose, and Taylor series for `jax.experimental.jet`.

The product is linear in x, and so are the sums in bias and residual. Where x is quantized inside,
its rounding counts as the identity (a straight-through estimator, Bengio et al. 2013): its tangent
is multiplied by the real values of the weight in float32 sums, a cotangent by their transpose.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import jet
from jax.interpreters import ad

from jax_qgemm import compat, reference
from jax_qgemm.errors import FLOATS
from jax_qgemm.explicit import repeated, typed
from jax_qgemm.primitives.gemm import gemm, gemm_p, operand_names, operation, rank
from jax_qgemm.types import GemmSpec


def _relu(y):
    """`reference.ACTIVATIONS["relu"]`, with derivative 0 at 0, as jax.nn.relu has it."""
    return jnp.where(y <= 0, 0, y)


_ACTIVATIONS = reference.ACTIVATIONS | {"relu": _relu}
# Inside a rule, jet takes no custom_jvp.
_FOR_SERIES = _ACTIVATIONS | {"gelu": lambda y: reference.gelu(y, jax.lax.erfc)}


def _jvp(primals, tangents, *, spec: GemmSpec):
    names = operand_names(spec)
    operands = dict(zip(names, primals, strict=True))
    moving = {
        name: tangent
        for name, tangent in zip(names, tangents, strict=True)
        if type(tangent) is not ad.Zero and tangent.dtype != jax.dtypes.float0
    }
    _check(moving, operands, spec)
    simple = spec.activation in ("none", "relu")
    out = gemm(spec if simple else _before_activation(spec), **operands)
    if set(moving) == {"x"} and spec.activation == "none":
        tangent = _of_x(moving["x"], operands, spec, spec.out_dtype)
    else:
        tangent = sum(_alike(_term(name, t, operands, spec), out) for name, t in moving.items())
    if spec.activation == "relu":
        tangent = jnp.where(out > 0, tangent, 0)
    elif not simple:
        out, tangent = jax.jvp(_ACTIVATIONS[spec.activation], (out,), (_alike(tangent, out),))
        out = out.astype(spec.out_dtype)
    return [out], [_alike(tangent, out).astype(out.dtype)]


def _alike(term, out):
    """As long as the result, and split as it is."""
    return typed(repeated(term, out), out)


def _product(spec: GemmSpec, operands):
    """gemm of a spec that leaves operands out; maybe those that have a batch."""
    if not any(operands[name].ndim > rank(name, spec) for name in operand_names(spec)):
        spec = dataclasses.replace(spec, batched=0)
    return gemm(spec, **operands)


def _check(moving, operands, spec: GemmSpec):
    """Refuses tangents of what has no derivative."""
    if spec.out_dtype not in FLOATS:
        _refuse(spec, f"its result is of {spec.out_dtype}; jax_qgemm.dot has floats")
    smooth = {"x", "bias", "residual", "x_scale"}
    if not spec.group:
        smooth.add("w_scale")
    for name in moving:
        if name not in smooth:
            _refuse(spec, f"not in {name}{' in groups' if name == 'w_scale' else ''}")


def _refuse(spec: GemmSpec, why: str):
    raise NotImplementedError(
        f"jax_qgemm.{operation(spec)}: not differentiable here: {why}. It is in float x, bias, "
        "residual and scales per tensor, row or channel; use jax.lax.stop_gradient on the rest"
    )


def _before_activation(spec: GemmSpec, **changes) -> GemmSpec:
    return dataclasses.replace(spec, activation="none", out_dtype="float32", **changes)


def _bare(spec: GemmSpec) -> GemmSpec:
    """The product and its scales."""
    return _before_activation(spec, bias=False, residual=False)


def _of_x(x, operands, spec: GemmSpec, out_dtype: str):
    """The linear map that the product is of a float x."""
    linear = dataclasses.replace(
        _bare(spec),
        dynamic=False,
        keeps_x=True,
        x_scale="none",
        x_zero_point="none",
        out_dtype=out_dtype,
    )
    return _product(linear, operands | {"x": x})


def _term(name: str, tangent, operands, spec: GemmSpec):
    """What the tangent of one operand adds to that of the result before the activation."""
    if name == "x":
        return _of_x(tangent, operands, spec, "float32")
    if name == "w_scale" and spec.transposed_k is not None:
        return _product(_bare(spec), operands | {name: tangent})  # linear in it
    spread = _spread(name, tangent, operands, spec).astype(jnp.float32)
    if name in ("bias", "residual"):
        return spread
    ones = {name: jnp.ones_like(operands[name])}
    return _product(_bare(spec), operands | ones) * spread


def _spread(name: str, operand, operands, spec: GemmSpec):
    """An operand, to be broadcast to the result."""
    if name == "residual":
        return operand
    if name == "x_scale":
        return _expand(operand, -1 if spec.x_scale == "row" else -1 - spec.rows, 0)
    if not spec.ragged:
        return _expand(operand, -1 - spec.rows, -1)
    groups, of_any = _groups_of_rows(operands)
    if operand.ndim > rank(name, spec):
        operand = operand[groups]
    return jnp.where(of_any[:, None], operand, 0)


def _groups_of_rows(operands):
    """Of each row of a ragged product its group, and whether it has one; else it is the last."""
    ends = jnp.cumsum(jnp.maximum(operands["group_sizes"], 0))
    rows = jnp.arange(operands["x"].shape[0])
    return jnp.searchsorted(ends[:-1], rows, side="right"), rows < ends[-1]


def _expand(operand, first: int, end: int):
    return jnp.expand_dims(operand, tuple(range(first, end)))


def _transpose(cotangents, *operands, spec: GemmSpec):
    (cotangent,) = cotangents
    names = operand_names(spec)
    linear = [n for n, o in zip(names, operands, strict=True) if ad.is_undefined_primal(o)]
    if linear == ["w_scale"] and spec.transposed_k is not None and spec == _linear_part(spec):
        return _transpose_in_scale(cotangent, dict(zip(names, operands, strict=True)), spec)
    if linear != ["x"] or not spec.keeps_x or spec != _linear_part(spec):
        raise NotImplementedError(
            f"jax_qgemm.{operation(spec)}: no transpose in {', '.join(linear)}: it is linear in "
            "float x alone, for weights that keep x as it is, without an activation; use jax.vjp"
        )
    x = operands[0].aval
    if type(cotangent) is ad.Zero:
        return [ad.Zero(x)] + [None] * (len(names) - 1)
    shared = x.shape[: x.ndim - rank("x", spec)] != cotangent.shape[: spec.batched]
    back = dataclasses.replace(
        spec,
        transposed_k=x.shape[-1] if spec.transposed_k is None else None,
        out_dtype="float32" if shared else x.dtype.name,
    )
    parts = dict(zip(names, operands, strict=True)) | {"x": cotangent}
    out = gemm(back, **parts)
    if shared:
        out = _sum_to(out, x.shape).astype(x.dtype)
    return [typed(out, x)] + [None] * (len(names) - 1)


def _transpose_in_scale(cotangent, operands, spec: GemmSpec):
    """Of x · (q · scale)ᵀ, linear in the scale of each column of q: the sum over rows of
    x * (cotangent · q)."""
    aval = operands["w_scale"].aval
    if type(cotangent) is ad.Zero:
        return [ad.Zero(aval) if name == "w_scale" else None for name in operands]
    forward = dataclasses.replace(spec, transposed_k=None, out_dtype="float32")
    parts = {"x": cotangent, "w_scale": jnp.ones(aval.shape, aval.dtype)}
    terms = gemm(forward, **(operands | parts)) * operands["x"].astype(jnp.float32)
    if spec.ragged:
        groups, of_any = _groups_of_rows(operands)
        terms = jnp.where(of_any[:, None], terms, 0)
        out = jax.ops.segment_sum(terms, groups, aval.shape[0], indices_are_sorted=True)
    else:
        out = _sum_to(terms.sum(tuple(range(-1 - spec.rows, -1))), aval.shape)
    return [typed(out, aval) if name == "w_scale" else None for name in operands]


def _sum_to(array, shape: tuple[int, ...]):
    """The sum over all dimensions along which one of `shape` is repeated."""
    array = array.sum(tuple(range(array.ndim - len(shape))))
    repeated = [
        i for i, (own, one) in enumerate(zip(array.shape, shape, strict=True)) if own != one
    ]
    return array.sum(tuple(repeated), keepdims=True)


def _linear_part(spec: GemmSpec) -> GemmSpec:
    return dataclasses.replace(_bare(spec), out_dtype=spec.out_dtype)


def _taylor(primals, series, *, spec: GemmSpec):
    """Series of x, bias and residual → that of the result. What else there is counts as constant:
    jet does not tell whether its series are zeros."""
    if spec.out_dtype not in FLOATS:
        _refuse(spec, f"its result is of {spec.out_dtype}")
    names = operand_names(spec)
    operands = dict(zip(names, primals, strict=True))
    moving = [
        name
        for name in ("x", "bias", "residual")
        if name in names and jnp.issubdtype(operands[name].dtype, jnp.floating)
    ]
    of = dict(zip(names, series, strict=True))
    y = gemm(_before_activation(spec), **operands)
    terms = [
        _alike(sum(_alike(_term(name, of[name][i], operands, spec), y) for name in moving), y)
        for i in range(len(series[0]))
    ]
    if spec.activation != "none":
        y, terms = compat.jet_in_rule(_FOR_SERIES[spec.activation], (y,), (terms,))
    return [y.astype(spec.out_dtype)], [[term.astype(spec.out_dtype) for term in terms]]


ad.primitive_jvps[gemm_p] = _jvp
ad.primitive_transposes[gemm_p] = _transpose
jet.jet_rules[gemm_p] = _taylor
