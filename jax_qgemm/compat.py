"""The only place that looks at JAX's version or at names that move between releases.

Supported and tested: jax 0.8.0 to 0.12.0.1, with DeprecationWarnings as errors.
"""

import jax
import numpy as np
from jax.experimental import jet

MINIMUM_JAX = (0, 8, 0)

if jax.__version_info__[:3] < MINIMUM_JAX:
    raise ImportError(
        f"jax_qgemm needs jax >= {'.'.join(map(str, MINIMUM_JAX))}, found jax {jax.__version__}: "
        "run `pip install --upgrade jax`"
    )

ShapedArray = jax.core.ShapedArray
# Of terms as the rules of jet have them: since jax 0.9 or so without the factorials.
jet_in_rule = getattr(jet, "jet2", jet.jet)


def concrete(x) -> np.ndarray | None:
    """The values of `x` where they are known at trace time and readable here, else None."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x)):
        return None  # also a list with a tracer in it
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)
