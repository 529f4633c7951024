"""gemm: out[M,N] = epilogue(x[M,K] · packed weight). FFI target jax_qgemm.gemm.v1."""

import functools

import numpy as np

from jax_qgemm import reference
from jax_qgemm.compat import ShapedArray
from jax_qgemm.errors import FLOATS, choices, describe
from jax_qgemm.primitives import common
from jax_qgemm.types import GemmSpec


def gemm(spec: GemmSpec, **operands):
    """out [M,N]. Operands by name as in `operand_names`; those that `spec` leaves out are None."""
    return gemm_p.bind(*(operands[name] for name in operand_names(spec)), spec=spec)[0]


@functools.cache
def operand_names(spec: GemmSpec) -> tuple[str, ...]:
    """The operands that `spec` has, in the order of the custom call."""
    raw = spec.out_dtype == "int32"
    requantized = spec.out_dtype in ("int8", "uint8")
    optional = {
        "x_scale": not spec.dynamic and not raw,
        "x_zero_point": spec.x_zero_point != "none",
        "w_zero_point": spec.w_zero_point,
        "bias": spec.bias,
        "residual": spec.residual,
        "out_scale": requantized,
        "out_zero_point": requantized,
    }
    always = ("x", "data", "w_scale", "column_sums")
    return always + tuple(name for name, present in optional.items() if present)


def _abstract_eval(*avals, spec: GemmSpec):
    operands = dict(zip(operand_names(spec), avals, strict=True))
    m, k = operands["x"].shape
    if operands["w_scale"].ndim != (2 if spec.group else 1):
        expected = "float32[groups,N]" if spec.group else "float32[N]"
        _refuse("w_scale", operands["w_scale"], expected)
    n = operands["w_scale"].shape[-1]
    rows = {"none": None, "tensor": (), "row": (m,)}
    blocks = len(reference.blocks(k, spec.w_zero_point, spec.group))
    columns = (blocks, n) if spec.group else (n,)
    expected = {
        "data": ((reference.packed_size(k, n),), "int8"),
        "w_scale": (columns, "float32"),
        "column_sums": ((blocks, n), "int32"),
        "x_scale": (rows[spec.x_scale], "float32"),
        "x_zero_point": (rows[spec.x_zero_point], "int32"),
        "w_zero_point": (columns, "int32"),
        "bias": ((n,), "float32"),
        "residual": ((m, n), FLOATS),
        "out_scale": ((n,) if spec.out_scale == "column" else (), "float32"),
        "out_zero_point": ((), "int32"),
    }
    for name in operand_names(spec)[1:]:
        shape, dtypes = expected[name]
        found = operands[name]
        dtypes = (dtypes,) if isinstance(dtypes, str) else dtypes
        if found.shape != shape or found.dtype.name not in dtypes:
            dims = ",".join(map(str, shape))
            what = f"{choices(dtypes)}[{dims}] for x {describe(operands['x'])} and N={n}"
            _refuse(name, found, what)
    return [ShapedArray((m, n), np.dtype(spec.out_dtype))]


def _refuse(name: str, found, expected: str):
    of_weight = name in ("data", "w_scale", "column_sums", "w_zero_point")
    hint = "; was the packed weight altered?" if of_weight else ""
    raise ValueError(f"gemm: {name} is {describe(found)}, expected {expected}{hint}")


def _reference(*operands, spec: GemmSpec):
    named = dict(zip(operand_names(spec), operands, strict=True))
    return [reference.gemm(**named, spec=spec)]


def _attributes(spec: GemmSpec):
    return {
        "dynamic": spec.dynamic,
        "has_x_zero_point": spec.x_zero_point != "none",
        "has_w_zero_point": spec.w_zero_point,
        "has_bias": spec.bias,
        "has_residual": spec.residual,
        "group": np.int64(spec.group or 0),
        "activation": spec.activation,
    }


def _operation(spec: GemmSpec) -> str:
    return "quantized_linear" if spec.out_dtype in reference.QRANGE else "dot"


def _batch(operands, dims, *, spec: GemmSpec):
    """Rows of x are independent: a batch of them is a longer M. Others go one by one."""
    names = operand_names(spec)
    by_row = {"x", "residual"}
    by_row |= {name for name in ("x_scale", "x_zero_point") if getattr(spec, name) == "row"}
    if any(d is not None and name not in by_row for name, d in zip(names, dims, strict=True)):
        return common.map_batch(functools.partial(gemm_p.bind, spec=spec), operands, dims)
    size = common.batch_size(operands, dims)
    folded = [
        common.to_rows(operand, dim, size) if name in by_row else operand
        for name, operand, dim in zip(names, operands, dims, strict=True)
    ]
    (out,) = gemm_p.bind(*folded, spec=spec)
    return [common.from_rows(out, size, operands[0], dims[0])], [0]


gemm_p = common.define(
    "jax_qgemm.gemm.v1",
    abstract_eval=_abstract_eval,
    reference=_reference,
    attributes=_attributes,
    batch=_batch,
    operation=_operation,
)
