"""Keras 3 on JAX: the Dense layers of a model replaced by layers with packed weights."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

import jax_qgemm

_FUSED = {getattr(keras.activations, name): name for name in ("relu", "gelu", "silu")}


@keras.saving.register_keras_serializable("jax_qgemm")
class QDense(keras.layers.Layer):
    """`keras.layers.Dense` with a packed kernel: (..., in) → (..., units). Its bias is trained."""

    def __init__(self, units, activation=None, use_bias=True, qtype="int8", **kwargs):
        super().__init__(**kwargs)
        self.units, self.use_bias, self.qtype = units, use_bias, qtype
        self.activation = keras.activations.get(activation)

    @classmethod
    def from_dense(cls, dense: keras.layers.Dense, qtype: str = "int8") -> "QDense":
        layer = cls(
            dense.units,
            dense.activation,
            dense.use_bias,
            qtype,
            name=dense.name,
            dtype=dense.dtype_policy,
        )
        layer.build((None, dense.kernel.shape[0]))
        packed = jax_qgemm.pack_weight(dense.kernel.value, qtype)
        for variable, part in zip(layer.parts, jax.tree.leaves(packed), strict=True):
            variable.assign(part)
        if dense.use_bias:
            layer.bias.assign(dense.bias)
        return layer

    def build(self, input_shape):
        """Variables for the arrays of a PackedWeight, by its own account of them."""
        kernel = jax.ShapeDtypeStruct((input_shape[-1], self.units), jnp.float32)
        packed = jax.eval_shape(lambda k: jax_qgemm.pack_weight(k, self.qtype), kernel)
        leaves, self.structure = jax.tree.flatten_with_path(packed)
        fixed = dict(trainable=False, autocast=False)
        self.parts = [
            self.add_weight(part.shape, "zeros", part.dtype.name, name=path[-1].name, **fixed)
            for path, part in leaves
        ]
        self.bias = self.add_weight((self.units,), "zeros", name="bias") if self.use_bias else None
        self.built = True

    def call(self, inputs):
        packed = jax.tree.unflatten(self.structure, [part.value for part in self.parts])
        bias = None if self.bias is None else jnp.asarray(self.bias)
        fused = _FUSED.get(self.activation)
        y = jax_qgemm.dot(inputs, packed, bias=bias, activation=fused)
        return y if fused else self.activation(y)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        own = dict(activation=activation, use_bias=self.use_bias, qtype=self.qtype)
        return super().get_config() | {"units": self.units} | own


def quantize(model: keras.Model, qtype: str = "int8") -> keras.Model:
    """A Sequential or functional model with a QDense for each Dense. It shares all other layers
    with `model`, which stays as it is."""

    def replace(layer):
        return QDense.from_dense(layer, qtype) if type(layer) is keras.layers.Dense else layer

    return keras.models.clone_model(model, clone_function=replace, recursive=True)


def main():
    model = keras.Sequential(
        [
            keras.layers.Input((256,)),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(32, 256)).astype(np.float32)
    exact = model.predict(x, verbose=0)
    y = quantize(model).predict(x, verbose=0)
    print(f"relative error {np.linalg.norm(y - exact) / np.linalg.norm(exact):.2%}")


if __name__ == "__main__":
    main()
