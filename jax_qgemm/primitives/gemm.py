"""gemm: out[*rows,N] = epilogue(x[*rows,K] · packed weight). FFI target jax_qgemm.gemm.v1."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.errors import FLOATS, choices, describe
from jax_qgemm.explicit import stacked
from jax_qgemm.primitives import batches, common
from jax_qgemm.primitives.partitioning import Split
from jax_qgemm.types import GemmSpec


def gemm(spec: GemmSpec, **operands):
    """out [*rows,N]. Operands by name as in `operand_names`; None those that `spec` leaves out."""
    return gemm_p.bind(*common.alike([operands[n] for n in operand_names(spec)]), spec=spec)[0]


@functools.cache
def operand_names(spec: GemmSpec) -> tuple[str, ...]:
    """The operands that `spec` has, in the order of the custom call."""
    raw = spec.out_dtype == "int32"
    requantized = spec.out_dtype in ("int8", "uint8")
    optional = {
        "w_scale": spec.weights == "int8",
        "column_sums": spec.weights == "int8" and not spec.keeps_x,
        "x_scale": not spec.dynamic and not raw and not spec.keeps_x,
        "x_zero_point": spec.x_zero_point != "none",
        "w_zero_point": spec.w_zero_point,
        "bias": spec.bias,
        "residual": spec.residual,
        "out_scale": requantized,
        "out_zero_point": requantized,
        "group_sizes": spec.ragged,
    }
    always = ("x", "data")
    return always + tuple(name for name, present in optional.items() if present)


_OF_WEIGHT = ("data", "w_scale", "column_sums", "w_zero_point")


def _by_row(spec: GemmSpec) -> set[str]:
    """The operands that have the rows of x."""
    parameters = ("x_scale", "x_zero_point")
    return {"x", "residual", *(name for name in parameters if getattr(spec, name) == "row")}


def _shapes(spec: GemmSpec, rows: tuple[int, ...], n: int, k: int):
    """Name → (shape, dtypes) of each operand of a single product with one weight."""
    of_x = {"none": None, "tensor": (), "row": rows}
    blocks = len(reference.blocks(k, spec.w_zero_point, spec.group))
    columns = (blocks, n) if spec.group else (n,)
    stored = {"int8": "int8"} | dict.fromkeys(reference.FLOAT_WEIGHTS, "uint16")
    return {
        "data": (
            (reference.packed_size(k, n, spec.weights, spec.blocks),),
            (stored.get(spec.weights, "uint8"),),
        ),
        "w_scale": (columns, ("float32",)),
        "column_sums": ((blocks, n), ("int32",)),
        "x_scale": (of_x[spec.x_scale], ("float32",)),
        "x_zero_point": (of_x[spec.x_zero_point], ("int32",)),
        "w_zero_point": (columns, ("int32",)),
        "bias": ((n,), ("float32",)),
        "residual": ((*rows, n), FLOATS),
        "out_scale": ((n,) if spec.out_scale == "column" else (), ("float32",)),
        "out_zero_point": ((), ("int32",)),
        "group_sizes": ((), ("int32",)),
    }


def rank(name: str, spec: GemmSpec) -> int:
    """Dimensions of an operand of a single product."""
    if name == "x":
        return spec.rows + 1
    return len(_shapes(spec, (1,) * spec.rows, 1, 1)[name][0])


def _abstract_eval(*avals, spec: GemmSpec):
    operands = dict(zip(operand_names(spec), avals, strict=True))
    lead = operands["group_sizes"].shape if spec.ragged else _lead(operands, spec)
    n = spec.columns
    if spec.weights == "int8":
        w_scale = operands["w_scale"]
        if w_scale.ndim - rank("w_scale", spec) not in (0, len(lead)):
            _refuse("w_scale", w_scale, "float32[groups,N]" if spec.group else "float32[N]")
        n = w_scale.shape[-1]
    *rows, k = operands["x"].shape[-rank("x", spec) :]
    if spec.transposed_k is not None:
        if k != n:
            _refuse("x", operands["x"], f"[…,{n}] for N={n} by the transpose of a weight")
        k = spec.transposed_k
    for name, (shape, dtypes) in _shapes(spec, tuple(rows), n, k).items():
        found = operands.get(name)
        if found is None:
            continue
        own = found.shape[: found.ndim - len(shape)]
        fits, expected = batches.repeats(own, lead), shape
        if spec.ragged and name != "bias":
            only = lead if name in _OF_WEIGHT or name == "group_sizes" else ()
            fits, expected = own == only, (*only, *shape)
        if not fits or found.shape[len(own) :] != shape or found.dtype.name not in dtypes:
            dims = ",".join(map(str, expected))
            what = f"{choices(dtypes)}[{dims}] for x {describe(operands['x'])} and N={n}"
            _refuse(name, found, what)
    n = n if spec.transposed_k is None else spec.transposed_k
    return [ShapedArray((*(() if spec.ragged else lead), *rows, n), np.dtype(spec.out_dtype))]


def _lead(operands, spec: GemmSpec) -> tuple[int, ...]:
    """The dimensions of a batch."""
    return batches.sizes(operands.values(), [rank(name, spec) for name in operands], spec.batched)


def _refuse(name: str, found, expected: str):
    hint = "; was the packed weight altered?" if name in _OF_WEIGHT else ""
    raise ValueError(f"gemm: {name} is {describe(found)}, expected {expected}{hint}")


def _fold(call, avals, *, spec: GemmSpec):
    """Rows in one dimension, and products."""
    names, rows = operand_names(spec), avals[0].shape[-rank("x", spec) : -1]
    lead = _lead(dict(zip(names, avals, strict=True)), spec)
    repeats = spec.batched and any(
        a.shape[: a.ndim - rank(name, spec)] not in ((), lead)
        for name, a in zip(names, avals, strict=True)
    )
    if spec.rows == 1 and spec.batched <= 1 and not repeats:
        return None
    one = dataclasses.replace(spec, rows=1, batched=min(spec.batched, 1))

    def fold(name, operand):
        dims = operand.ndim - rank(name, spec)
        own, shape = operand.shape[:dims], operand.shape[dims:]
        if name in _by_row(spec):
            operand = operand.reshape(*own, math.prod(rows), *shape[spec.rows :])
        return batches.fold(operand, rank(name, one), lead) if spec.batched else operand

    def run(*operands):
        folded = [fold(*pair) for pair in zip(names, operands, strict=True)]
        return [out.reshape(*lead, *rows, out.shape[-1]) for out in call(*folded, spec=one)]

    return run


def _reference(*operands, spec: GemmSpec):
    names = operand_names(spec)

    def product(*parts):
        return reference.gemm(**dict(zip(names, parts, strict=True)), spec=spec)

    if not spec.batched and not spec.ragged:
        return [product(*operands)]
    if spec.ragged:
        names, (*operands, group_sizes) = names[:-1], operands
    axes = [_batch_axis(n, o, spec) for n, o in zip(names, operands, strict=True)]
    if spec.batched:
        return [jax.vmap(product, in_axes=axes)(*operands)]
    return [reference.ragged(product, operands, axes, group_sizes)]


def _batch_axis(name: str, operand, spec: GemmSpec):
    """0 where an operand of a batched call has one for each product, None where it is shared."""
    return 0 if operand.ndim > rank(name, spec) else None


def _attributes(spec: GemmSpec):
    """Of the composite, by names."""
    return {
        "weights": spec.weights,
        "block_scale": spec.blocks.scale_dtype if spec.blocks else "none",
        "block_minimum": bool(spec.blocks and spec.blocks.minimum),
        "group": np.int64(spec.group or (spec.blocks.group if spec.blocks else 0)),
        "dynamic": spec.dynamic,
        "x_scale": spec.x_scale,
        "x_zero_point": spec.x_zero_point,
        "has_w_zero_point": spec.w_zero_point,
        "has_bias": spec.bias,
        "has_residual": spec.residual,
        "activation": spec.activation,
        "out_scale_per_column": spec.out_scale == "column",
        "batched": spec.batched > 0,
        "ragged": spec.ragged,
        "transposed": spec.transposed_k is not None,
    }


_GRANULARITIES = ("none", "tensor", "row")
# The numbers of a custom call, in their order, and what those stand for that do not for themselves:
# part of the version of the target, see handlers/gemm_form.h.
_FORM = {
    "weights": ("int8", "float16", "bfloat16", "int4", "int8_blocks"),
    "block_scale": ("none", "float32", "bfloat16", "float16"),
    "block_minimum": None,
    "group": None,
    "dynamic": None,
    "x_scale": _GRANULARITIES,
    "x_zero_point": _GRANULARITIES,
    "has_w_zero_point": None,
    "has_bias": None,
    "has_residual": None,
    "activation": ("none", "relu", "gelu", "gelu_tanh", "silu"),
    "out_scale_per_column": None,
    "batched": None,
    "ragged": None,
    "transposed": None,
}


@functools.cache
def _call_attributes(spec: GemmSpec):
    """Of the custom call: the same as an array of numbers."""
    named = _attributes(spec)
    numbers = [
        meanings.index(named[name]) if meanings else int(named[name])
        for name, meanings in _FORM.items()
    ]
    return {"form": np.array(numbers, np.int32)}


def operation(spec: GemmSpec) -> str:
    if spec.ragged:
        return "ragged_dot"
    return "quantized_linear" if spec.out_dtype in reference.QRANGE else "dot"


def _batch(operands, dims, *, spec: GemmSpec):
    """Rows of x are independent: a batch of them is a longer M. Others make a batch of products;
    ragged ones go one by one."""
    if spec.ragged:
        return common.map_batch(functools.partial(gemm_p.bind, spec=spec), operands, dims)
    names = operand_names(spec)
    by_row = _by_row(spec)
    if all(d is None or name in by_row for name, d in zip(names, dims, strict=True)):
        return _more_rows(names, operands, dims, spec)
    ranks = [rank(name, spec) for name in names]
    results = gemm_p.bind(
        *batches.insert(operands, dims, ranks, spec.batched),
        spec=dataclasses.replace(spec, batched=spec.batched + 1),
    )
    return results, [0]


def _more_rows(names, operands, dims, spec: GemmSpec):
    """The new dimension becomes one of rows."""
    mapped, at = next((o, d) for o, d in zip(operands, dims, strict=True) if d is not None)

    def insert(name, operand, dim):
        if name not in _by_row(spec):
            return operand
        new = stacked(operand, mapped, at) if dim is None else jnp.moveaxis(operand, dim, 0)
        return jnp.moveaxis(new, 0, new.ndim - 1 - rank(name, spec))  # behind that of a batch

    results = gemm_p.bind(
        *[insert(*args) for args in zip(names, operands, dims, strict=True)],
        spec=dataclasses.replace(spec, rows=spec.rows + 1),
    )
    return results, [spec.batched]


def _split(avals, results, *, spec: GemmSpec):
    """Rows, products of a batch, and panels of columns, where the packed weight has whole ones."""
    names = operand_names(spec)
    operands = dict(zip(names, avals, strict=True))
    transposed = spec.transposed_k is not None
    n = operands["x"].shape[-1] if transposed else results[0].shape[-1]
    rows = (None,) if spec.ragged else tuple(f"m{i}" for i in range(spec.rows))
    columns = None if n == 0 or n % reference.PANEL else "n"
    of_x = {"none": None, "tensor": (), "row": rows}
    of_columns = (None, columns) if spec.group else (columns,)
    dims = {
        "x": (*rows, columns if transposed else None),
        "data": (columns,),
        "w_scale": of_columns,
        "column_sums": (None, columns),
        "x_scale": of_x[spec.x_scale],
        "x_zero_point": of_x[spec.x_zero_point],
        "w_zero_point": of_columns,
        "bias": (columns,),
        "residual": (*rows, columns),
        "out_scale": (columns,) if spec.out_scale == "column" else (),
        "out_zero_point": (),
        "group_sizes": (),
    }
    lead = batches.named(results[0], spec.batched)
    sizes = lead | dict(zip(rows, operands["x"].shape[-rank("x", spec) : -1], strict=True))
    if columns:
        sizes["n"] = n // reference.PANEL

    def dims_of(name, operand):
        rank_of_one = len(dims[name])
        if spec.ragged:
            return (None,) * (operand.ndim - rank_of_one) + dims[name]
        return batches.factors(operand, rank_of_one, lead) + dims[name]

    operand_dims = tuple(dims_of(*pair) for pair in operands.items())
    out = (*lead, *rows, None if transposed else columns)
    summed = (columns,) if transposed and columns else ()

    def localize(parts):
        if spec.columns is None:
            return {"spec": spec}
        return {"spec": dataclasses.replace(spec, columns=spec.columns // parts.get("n", 1))}

    return Split(operand_dims, (out,), sizes, summed), localize


gemm_p = common.define(
    "jax_qgemm.gemm.v1",
    abstract_eval=_abstract_eval,
    reference=common.folding(_reference, _fold),
    attributes=_attributes,
    call_attributes=_call_attributes,
    batch=_batch,
    operation=operation,
    split=_split,
    fold=_fold,
)
