"""qwix: models that it quantizes after training (PTQ), with their products on our kernels.

qwix decides what is quantized and how; its `PtqProvider` takes the products as arguments.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix

import jax_qgemm


def provider(rules) -> qwix.PtqProvider:
    """A `PtqProvider` whose products run on jax_qgemm."""
    einsum = functools.partial(qwix.einsum, _qwix_dot_general=dot_general)
    return qwix.PtqProvider(rules, _dot_general_fn=dot_general, _einsum_fn=einsum)


def pack_params(params):
    """The parameters of `qwix.quantize_params`, or an nnx state, with each matrix (K, N) among the
    weights packed: once, not at every call. For layers that call dot_general, not einsum."""

    def pack(leaf):
        if (
            isinstance(leaf, qwix.QArray)
            and leaf.ndim == 2
            and leaf.scale.shape[1] == leaf.shape[1]
        ):
            return _packed(leaf, (0,)) or leaf
        return leaf

    return jax.tree.map(pack, params, is_leaf=lambda node: isinstance(node, qwix.QArray))


def dot_general(
    lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, *, out_sharding=None
):
    """`qwix.dot_general` with a weight that is a PackedWeight, or a QArray, packed at each call.

    What the kernels do not have (batches on both sides, 4-bit weights whose groups are no multiple
    of 32, weights of 8-bit floats) runs as qwix runs it.
    """
    (contracting, rhs_contracting), (batch, _) = dimension_numbers
    w, columns = rhs, rhs.shape[1:]
    if not isinstance(rhs, jax_qgemm.PackedWeight):
        columns = [size for axis, size in enumerate(rhs.shape) if axis not in rhs_contracting]
        single = isinstance(rhs, qwix.QArray) and not batch and out_sharding is None
        w = _packed(rhs, rhs_contracting) if single else None
    if w is None:
        return qwix.dot_general(
            lhs,
            rhs,
            dimension_numbers,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
        )
    if out_sharding is not None:
        raise NotImplementedError(f"out_sharding {out_sharding} of a product with packed weights")
    x = _rows(lhs, contracting, integers=w.blocks is None)
    floats = not isinstance(x, jax_qgemm.QuantizedArray)
    w = dataclasses.replace(w, weight_only=floats)  # as the rule says, not quantized on the fly
    dtype = preferred_element_type or lhs.dtype
    y = jax_qgemm.dot(x, w, preferred_element_type=dtype)
    return y.reshape(*y.shape[:-1], *columns)


def _packed(w: qwix.QArray, contracting) -> jax_qgemm.PackedWeight | None:
    """The weight as a packed matrix (K, N); None if there is no such format."""
    if w.qvalue.dtype not in (jnp.int8, jnp.int4):
        return None
    rest = [axis for axis in range(w.ndim) if axis not in contracting]
    columns = [w.shape[axis] for axis in rest]

    def matrix(part):  # (groups or K, N)
        part = part.transpose(*contracting, *rest)
        part = jnp.broadcast_to(part, (*part.shape[: len(contracting)], *columns))
        return part.reshape(-1, math.prod(columns))

    q, scale = matrix(w.qvalue.astype(jnp.int8)), matrix(w.scale)
    zero_point = None if w.zero_point is None else matrix(w.zero_point).astype(jnp.int32)
    groups = scale.shape[0]
    if groups > 1 and (len(contracting) > 1 or (q.shape[0] // groups) % 32):
        return None
    if groups > 1 and w.qvalue.dtype == jnp.int4 and zero_point is None:
        group = q.shape[0] // groups
        return jax_qgemm.pack_blocks((q + 8).astype(jnp.uint8), scale, group_size=group)
    group = q.shape[0] // groups if groups > 1 else None
    scale = scale.astype(jnp.float32)
    return jax_qgemm.pack(jax_qgemm.QuantizedArray(q, scale, zero_point, "int8", group))


def _rows(x, contracting, integers: bool):
    """x as (..., K): a QuantizedArray where it is one with a scale per row, else floats."""
    rest = [axis for axis in range(x.ndim) if axis not in contracting]

    def rows(part):
        part = part.transpose(*rest, *contracting)
        return part.reshape(*part.shape[: len(rest)], -1)

    if not isinstance(x, qwix.QArray):
        return rows(x)
    scale = rows(x.scale).astype(jnp.float32)
    if not integers or scale.shape[-1] > 1 or x.qvalue.dtype not in (jnp.int8, jnp.int4):
        return rows(qwix.dequantize(x))
    zero_point = None if x.zero_point is None else rows(x.zero_point).astype(jnp.int32)
    return jax_qgemm.QuantizedArray(rows(x.qvalue.astype(jnp.int8)), scale, zero_point, "int8")


def main():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.relu(nn.Dense(1024)(x)))

    x_key, key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (32, 256))
    params = Model().init(key, x)["params"]

    rules = [qwix.QuantizationRule(module_path=".*", weight_qtype="int8", act_qtype="int8")]
    model = qwix.quantize_model(Model(), provider(rules))
    shapes = jax.eval_shape(model.init, key, x)["params"]
    packed = pack_params(qwix.quantize_params(params, shapes))

    exact = Model().apply({"params": params}, x)
    y = jax.jit(model.apply)({"params": packed}, x)
    error = jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)
    print(f"relative error {error:.2%}")


if __name__ == "__main__":
    main()
