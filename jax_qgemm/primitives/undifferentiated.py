"""Where derivatives end: an identity in plain JAX, and the rules that say so."""

from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def refuse_gradient(operation: str):
    """The JVP rule of what has 8-bit results. JAX calls it only where a tangent is not zero."""
    hint = ""
    if not operation.startswith(("attention", "KVCache")):
        hint = ", or jax_qgemm.fake_quantize to train through quantization"
    raise NotImplementedError(
        f"jax_qgemm.{operation}: not differentiable; use jax.lax.stop_gradient on its arguments"
        f"{hint}"
    )


def refuse_series(operation: str):
    """The rule of jax.experimental.jet, which knows no custom derivatives."""
    raise NotImplementedError(
        f"jax_qgemm.{operation}: jax.experimental.jet has no rule for it; use jax.jvp, nested for "
        "higher orders, where it is differentiable"
    )


def undifferentiated(operation: str, *arrays) -> list:
    """The arrays, which must have no tangents and no series here. In functions of jax.custom_jvp,
    whose bodies jax.jvp does not see, only jet is refused."""
    if any(isinstance(array, jet.JetTracer) for array in arrays):
        refuse_series(operation)  # here, because jet has no rules in such bodies
    return identity_p.bind(*arrays, operation=operation)


identity_p = Primitive("jax_qgemm_undifferentiated")
identity_p.multiple_results = True
identity_p.def_abstract_eval(lambda *avals, operation: list(avals))
identity_p.def_impl(lambda *arrays, operation: list(arrays))
mlir.register_lowering(identity_p, lambda ctx, *values, operation: values)
batching.primitive_batchers[identity_p] = lambda arrays, dims, operation: (
    undifferentiated(operation, *arrays),
    dims,
)
ad.primitive_jvps[identity_p] = lambda primals, tangents, operation: refuse_gradient(operation)
jet.jet_rules[identity_p] = lambda primals, series, operation: refuse_series(operation)
