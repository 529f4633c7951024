"""An image as a network, and its derivatives: value, gradient and Laplacian from packed weights.

A SIREN (Sitzmann et al., arXiv 2006.09661) is fitted to a small image in float32. Then its weights
are packed, and `jax.grad` and a Hessian's trace go through the packed products as through any
function: what networks like it are used for in graphics and physics (and compiled into hardware by
INR-Arch, arXiv 2308.05930).

    python examples/implicit_field.py
    python examples/implicit_field.py --size=128 --plot=field.png
"""

import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jax_qgemm

_SIZE = flags.DEFINE_integer("size", 64, "pixels along each side of the image", lower_bound=8)
_STEPS = flags.DEFINE_integer("steps", 800, "steps of the fit", lower_bound=1)
_FORMATS = flags.DEFINE_list(
    "formats", ["fp16", "bf16", "int8:weight_only", "int8"], "formats of packed weights"
)
_PLOT = flags.DEFINE_string("plot", None, "draw image, gradient and Laplacian into this file")

FREQUENCY = 20.0  # of the first layer's sines: as of an image
WIDTHS = (2, 128, 128, 128, 1)

Layers = list[dict[str, jax.Array]]
Product = Callable[..., jax.Array]  # (x, kernel, bias) → x @ kernel + bias


def image(size: int) -> tuple[jax.Array, jax.Array]:
    """Positions (size², 2) from -1 to 1, and the values there: hills and ripples, from -1 to 1."""
    side = jnp.linspace(-1, 1, size)
    x, y = jnp.meshgrid(side, side, indexing="ij")
    hills = jnp.exp(-4 * ((x - 0.3) ** 2 + (y + 0.2) ** 2)) - jnp.exp(
        -6 * ((x + 0.5) ** 2 + (y - 0.4) ** 2)
    )
    ripples = 0.3 * jnp.sin(9 * x + 4 * y) * jnp.cos(7 * y)
    return jnp.stack([x, y], -1).reshape(-1, 2), (hills + ripples).reshape(-1)


def init(key: jax.Array) -> Layers:
    """Uniform, with the bounds of the paper's section 3.2; FREQUENCY is in the first kernel."""
    layers = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        bound = FREQUENCY / fan_in if i == 0 else np.sqrt(6 / fan_in)
        key, now = jax.random.split(key)
        kernel = jax.random.uniform(now, (fan_in, fan_out), minval=-bound, maxval=bound)
        layers.append({"kernel": kernel, "bias": jnp.zeros(fan_out)})
    return layers


def field(layers: Layers, position: jax.Array, product: Product = jax_qgemm.dot) -> jax.Array:
    """Values (...) at positions (..., 2)."""
    x = position
    for layer in layers[:-1]:
        x = jnp.sin(product(x, layer["kernel"], bias=layer["bias"]))
    return product(x, layers[-1]["kernel"], bias=layers[-1]["bias"])[..., 0]


def float_product(x: jax.Array, kernel: jax.Array, *, bias: jax.Array) -> jax.Array:
    return x @ kernel + bias


def fit(positions: jax.Array, values: jax.Array, steps: int, seed: int = 0) -> Layers:
    """Layers of a SIREN whose values at the positions are these, by Adam on all of them."""
    layers = init(jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(layers):
        return jnp.mean((field(layers, positions, float_product) - values) ** 2)

    @jax.jit
    def step(layers, state):
        updates, state = optimizer.update(jax.grad(loss)(layers), state)
        return optax.apply_updates(layers, updates), state

    state = optimizer.init(layers)
    for _ in range(steps):
        layers, state = step(layers, state)
    return layers


def pack(layers: Layers, form: str) -> Layers:
    return [
        {"kernel": jax_qgemm.pack_weight(layer["kernel"], form), "bias": layer["bias"]}
        for layer in layers
    ]


def derivatives(layers: Layers, positions: jax.Array, product: Product = jax_qgemm.dot):
    """Values (n,), gradients (n, 2) and Laplacians (n,) at positions (n, 2).

    The Laplacian is the sum of second derivatives, each a forward derivative of the gradient.
    """

    def at(position):
        return field(layers, position, product)

    def second(position, direction):
        return jax.jvp(jax.grad(at), (position,), (direction,))[1] @ direction

    def laplacian(position):
        return sum(second(position, direction) for direction in jnp.eye(2))

    return at(positions), jax.vmap(jax.grad(at))(positions), jax.vmap(laplacian)(positions)


def error(got: jax.Array, want: jax.Array) -> float:
    """Root mean square, relative to the values that there are."""
    return float(jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.mean(want**2)))


def draw(path: str, size: int, values, gradients, laplacians) -> None:
    import matplotlib.pyplot as plt  # nothing else needs it

    figure, axes = plt.subplots(1, 3, figsize=(9, 3))
    slopes = jnp.linalg.norm(gradients, axis=-1)
    for axis, name, part in zip(
        axes, ("value", "|gradient|", "Laplacian"), (values, slopes, laplacians), strict=True
    ):
        axis.imshow(np.asarray(part).reshape(size, size), cmap="gray")
        axis.set_title(name)
        axis.axis("off")
    figure.savefig(path, bbox_inches="tight")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"unknown argument {argv[1]}: see --help")
    if _PLOT.value and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: pip install matplotlib")
    jax.config.update("jax_platforms", "cpu")
    positions, values = image(_SIZE.value)
    layers = fit(positions, values, _STEPS.value)
    want = jax.jit(derivatives, static_argnums=2)(layers, positions, float_product)
    fitted = error(want[0], values)
    print(f"{_SIZE.value}x{_SIZE.value} image, fitted with a relative error of {fitted:.1e}")
    print(f"{'weights':<18}{'value':>10}{'gradient':>10}{'Laplacian':>11}{'time':>12}")
    found = want
    for form in ("float32", *_FORMATS.value):
        try:
            packed = layers if form == "float32" else pack(layers, form)
        except ValueError as wrong:
            sys.exit(f"--formats: {wrong}")
        product = float_product if form == "float32" else jax_qgemm.dot
        run = jax.jit(derivatives, static_argnums=2).lower(packed, positions, product).compile()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            found = jax.block_until_ready(run(packed, positions))
            times.append(time.perf_counter() - start)
        value, gradient, laplacian = map(error, found, want)
        print(
            f"{form:<18}{value:>10.1e}{gradient:>10.1e}{laplacian:>11.1e}"
            f"{np.median(times) * 1e3:>9.1f} ms"
        )
    if _PLOT.value:
        draw(_PLOT.value, _SIZE.value, *found)


if __name__ == "__main__":
    app.run(main)
