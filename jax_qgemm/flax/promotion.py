"""`dot` with the dtypes of Flax's own layers, so that a quantized layer can take their place."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_qgemm import errors
from jax_qgemm.linear import dot
from jax_qgemm.types import PackedWeight


def promoted_dot(
    layer: str,
    x: jax.typing.ArrayLike,
    weight: PackedWeight,
    bias: jax.Array | None,
    activation: str | None,
    dtype: jax.typing.DTypeLike | None,
    param_dtype: jax.typing.DTypeLike,
    residual: jax.Array | None = None,
) -> jax.Array:
    """`dot` of any real x; the result is of `dtype`, else what x and the parameters promote to.

    Inside, x is float32, or bfloat16 or float16 where it has that dtype or that is what was asked
    for. Results of other dtypes (float64) are computed in float32 and then cast.
    """
    x = errors.as_array(layer, "x", x)
    if dtype is None:
        others = () if bias is None else (bias.dtype,)
        dtype = jnp.result_type(x, param_dtype, *others)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{layer}: the result must have a real floating dtype, got {jnp.dtype(dtype).name} "
            f"(x: {errors.describe(x)}, parameters: {jnp.dtype(param_dtype).name})"
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{layer}: x must be real, got {errors.describe(x)}")
    computed = dtype if jnp.dtype(dtype).name in errors.FLOATS else jnp.float32
    if x.dtype == jnp.float32 or x.dtype.name not in errors.FLOATS:
        x = x.astype(computed)
    if bias is not None and bias.dtype.name not in errors.FLOATS:
        bias = bias.astype(jnp.float32)
    if residual is not None:
        residual = errors.as_array(layer, "residual", residual)
        if residual.dtype == jnp.float64:
            residual = residual.astype(jnp.float32)
    y = dot(
        x,
        weight,
        bias=bias,
        residual=residual,
        activation=activation,
        preferred_element_type=computed,
    )
    return y.astype(dtype)
