"""The only place that looks at JAX's version or at names that move between releases.

Supported and tested: from MINIMUM_JAX to the releases of NEWEST_JAX, with DeprecationWarnings as
errors (`./dev matrix`).
"""

import importlib
import warnings

import jax
import numpy as np
from jax.experimental import jet

MINIMUM_JAX = (0, 8, 1)
NEWEST_JAX = (0, 12)

if jax.__version_info__[:3] < MINIMUM_JAX:
    raise ImportError(
        f"jax_qgemm needs jax >= {'.'.join(map(str, MINIMUM_JAX))}, found jax {jax.__version__}: "
        "run `pip install --upgrade jax`"
    )
if jax.__version_info__[:2] > NEWEST_JAX:
    warnings.warn(
        f"jax_qgemm is tested with jax up to {'.'.join(map(str, NEWEST_JAX))}, found jax "
        f"{jax.__version__}: should anything break, use an older jax or a newer jax_qgemm",
        stacklevel=2,
    )

ShapedArray = jax.core.ShapedArray
# Of terms as the rules of jet have them: since jax 0.9 or so without the factorials.
jet_in_rule = getattr(jet, "jet2", jet.jet)


def _primitives_by_devices() -> set | None:
    """Private, without a public name for it: custom_partitioning alone is in it."""
    try:
        dispatch = importlib.import_module("jax._src.dispatch")
    except ImportError:
        return None
    return getattr(dispatch, "prim_requires_devices_during_lowering", None)


_PRIMITIVES_BY_DEVICES = _primitives_by_devices()


def varying(x) -> frozenset:
    """The manual mesh axes that x differs along, inside shard_map."""
    aval = jax.typeof(x)
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying


def vary(x, axes):
    """x as one that differs along these axes, too."""
    axes = tuple(sorted(axes))
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return jax.lax.pvary(x, axes)


def exports(ctx) -> bool:
    """Whether what is lowered is exported, for other processes and later releases."""
    return bool(getattr(ctx.module_context.lowering_parameters, "for_export", False))


def takes_composites(ctx) -> bool:
    """Whether jax.lax.composite can be lowered here: for one platform, without symbolic sizes."""
    return not ctx.dim_var_values


def splits_operands(ctx) -> bool:
    """Whether what is lowered runs on several devices of a known mesh, among which XLA splits it.

    Not what is exported: the callbacks of a partition live in this process.
    """
    context = ctx.module_context.axis_context
    devices = getattr(context, "device_assignment", None)
    if devices is None or len(devices) == 1 or getattr(context, "abstract_mesh", None) is None:
        return False
    return not exports(ctx)


def lower_by_devices(primitive):
    """Tells JAX that the lowering depends on them, so that it knows them. Where a release of JAX
    has another place for that, `splits_operands` is never true."""
    if _PRIMITIVES_BY_DEVICES is not None:
        _PRIMITIVES_BY_DEVICES.add(primitive)


def concrete(x) -> np.ndarray | None:
    """The values of `x` where they are known at trace time and readable here, else None."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x)):
        return None  # also a list with a tracer in it
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)
