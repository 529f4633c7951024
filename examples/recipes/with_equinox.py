"""Equinox: every `eqx.nn.Linear` of a model replaced by a layer with a packed weight."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

import jax_qgemm


class QLinear(eqx.Module):
    """`eqx.nn.Linear` with a packed weight: x (in,) → (out,)."""

    weight: jax_qgemm.PackedWeight  # (in, out); eqx.nn.Linear has it as (out, in)
    bias: jax.Array | None
    scalars: tuple[bool, bool] = eqx.field(static=True)

    @classmethod
    def from_linear(cls, linear: eqx.nn.Linear, qtype: str = "int8") -> "QLinear":
        scalars = linear.in_features == "scalar", linear.out_features == "scalar"
        pack = functools.partial(jax_qgemm.pack_weight, qtype=qtype)
        for _ in range(linear.weight.ndim - 2):  # layers that eqx.filter_vmap made
            pack = jax.vmap(pack)
        return cls(pack(linear.weight.mT), linear.bias, scalars)

    def __call__(self, x, *, key=None):
        scalar_in, scalar_out = self.scalars
        x = jnp.broadcast_to(x, (1,)) if scalar_in else x
        y = jax_qgemm.dot(x, self.weight, bias=self.bias)
        return jnp.squeeze(y) if scalar_out else y


def quantize(model, qtype: str = "int8"):
    """The model with a QLinear for each eqx.nn.Linear, stacks of layers for jax.lax.scan too."""

    def is_linear(node):
        return isinstance(node, eqx.nn.Linear)

    def linears(model):
        leaves = jax.tree.leaves(model, is_leaf=is_linear)
        return [leaf for leaf in leaves if is_linear(leaf)]

    layers = [QLinear.from_linear(linear, qtype) for linear in linears(model)]
    return eqx.tree_at(linears, model, layers)


@eqx.filter_jit
def apply(model, x):
    """The model on a batch: under vmap the rows are one product."""
    return jax.vmap(model)(x)


def main():
    model_key, x_key = jax.random.split(jax.random.key(0))
    model = eqx.nn.MLP(256, 10, width_size=1024, depth=2, key=model_key)
    x = jax.random.normal(x_key, (32, 256))
    exact, y = apply(model, x), apply(quantize(model), x)
    error = jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)
    print(f"relative error {error:.2%}")


if __name__ == "__main__":
    main()
