"""AQT, and linen's `dot_general_cls`: a model trained with AQT, served from packed weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from aqt.jax.v2 import config as aqt_config
from aqt.jax.v2 import utils as aqt_utils
from aqt.jax.v2.flax import aqt_flax
from flax import traverse_util

import jax_qgemm


class PackedDotGeneral(nn.Module):
    """`dot_general_cls` of a linen layer whose weight is packed: the variable "kernel" of the
    collection "packed". `from_aqt` makes it; where there is none, `init` packs the layer's own."""

    qtype: str = "int8"

    @nn.compact
    def __call__(self, lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
        if dimension_numbers != (((lhs.ndim - 1,), (0,)), ((), ())) or rhs.ndim != 2:
            raise NotImplementedError(
                f"PackedDotGeneral: a product of (..., K) and (K, N) is expected, got {lhs.shape} "
                f"and {rhs.shape} with dimension_numbers {dimension_numbers}"
            )
        pack = functools.partial(jax_qgemm.pack_weight, rhs, self.qtype)
        kernel = self.variable("packed", "kernel", pack)
        return jax_qgemm.dot(lhs, kernel.value, preferred_element_type=preferred_element_type)


def from_aqt(variables):
    """The variables of a model that AQT has converted, for the same model with PackedDotGeneral.

    AQT's int8 weights are packed as they are. The float ones, which only lend their shapes to
    linen, become zeros that take no memory.
    """
    params = traverse_util.flatten_dict(variables["params"])
    packed = {}
    for path, frozen in traverse_util.flatten_dict(variables["aqt"], is_leaf=_is_frozen).items():
        value, scale = frozen["value"], frozen["scale"].reshape(1, -1)
        q = jax_qgemm.QuantizedArray(value, scale, None, "int8")
        layer = path[:-2]  # without AqtDotGeneral_0 and qrhs
        packed[(*layer, "PackedDotGeneral_0", "kernel")] = jax_qgemm.pack(q)
        kernel = params[(*layer, "kernel")]
        params[(*layer, "kernel")] = np.broadcast_to(np.zeros((), kernel.dtype), kernel.shape)
    return {
        "params": traverse_util.unflatten_dict(params),
        "packed": traverse_util.unflatten_dict(packed),
    }


def _is_frozen(_, node):
    return "value" in node and "scale" in node


def aqt_dot_general(mode: aqt_utils.QuantMode):
    """`dot_general_cls` with AQT's int8 arithmetic, whose weights CONVERT freezes."""
    return functools.partial(
        aqt_flax.AqtDotGeneral,
        aqt_config.config_v4(),
        rhs_quant_mode=mode,
        rhs_freeze_mode=aqt_flax.FreezerMode.CALIBRATION_AND_VALUE,
    )


class Model(nn.Module):
    dot_general_cls: type

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(1024, dot_general_cls=self.dot_general_cls)(x))
        return nn.Dense(10, dot_general_cls=self.dot_general_cls)(x)


def main():
    x_key, key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (32, 256))
    training = Model(aqt_dot_general(aqt_utils.QuantMode.TRAIN))
    variables = training.init(key, x)  # here it would be trained

    converting = Model(aqt_dot_general(aqt_utils.QuantMode.CONVERT))
    expected, converted = converting.apply(variables, x, mutable=True, rngs={"params": key})
    y = jax.jit(Model(PackedDotGeneral).apply)(from_aqt(converted), x)
    difference = jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected)
    print(f"relative difference to AQT's own int8 {difference:.2%}")


if __name__ == "__main__":
    main()
