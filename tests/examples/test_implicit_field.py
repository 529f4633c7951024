"""The SIREN example: derivatives from packed weights against those of float32 products."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for package in ("absl", "optax"):
    pytest.importorskip(package, reason=f"the example needs {package}")

import implicit_field as example

EXAMPLES = pathlib.Path(example.__file__).parent


@pytest.fixture(scope="module")
def fitted():
    positions, values = example.image(16)
    layers = example.fit(positions, values, 60)
    start = example.init(jax.random.key(0))
    fits = [example.field(part, positions, example.float_product) for part in (start, layers)]
    before, after = (float(jnp.mean((f - values) ** 2)) for f in fits)
    assert after < before / 10
    return layers, positions


@pytest.mark.parametrize("form", ["fp16", "bf16", "int8:weight_only"])
def test_derivatives(form, fitted):
    layers, positions = fitted
    packed = example.pack(layers, form)
    real = [layer | {"kernel": layer["kernel"].dequantize()} for layer in packed]
    got = jax.jit(example.derivatives)(packed, positions)
    want = jax.jit(example.derivatives, static_argnums=2)(real, positions, example.float_product)
    for found, expected, shape in zip(got, want, ((256,), (256, 2), (256,)), strict=True):
        assert found.shape == shape
        assert example.error(found, expected) < 2e-5


def test_third_order(fitted):
    layers, positions = fitted
    packed = example.pack(layers, "fp16")
    real = [layer | {"kernel": layer["kernel"].dequantize()} for layer in packed]
    third = [
        jax.jacfwd(jax.jacrev(jax.grad(f)))(positions[37])
        for f in (
            lambda p: example.field(packed, p),
            lambda p: example.field(real, p, example.float_product),
        )
    ]
    assert third[0].shape == (2, 2, 2)
    assert example.error(*third) < 1e-4


def test_quantized_activations_are_near(fitted):
    layers, positions = fitted
    got = jax.jit(example.derivatives)(example.pack(layers, "int8"), positions)
    want = jax.jit(example.derivatives, static_argnums=2)(layers, positions, example.float_product)
    for found, expected, most in zip(got, want, (0.1, 0.2, 0.4), strict=True):
        assert np.isfinite(found).all() and example.error(found, expected) < most


def run(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / "implicit_field.py", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_command():
    result = run("--size=8", "--steps=5")
    assert result.returncode == 0, result.stderr
    assert "8x8 image, fitted" in result.stdout
    for form in ("float32", "fp16", "bf16", "int8:weight_only", "int8"):
        assert re.search(
            rf"^{form} +[\d.e+-]+ +[\d.e+-]+ +[\d.e+-]+ +[\d.]+ ms$", result.stdout, re.M
        )


def test_wrong_arguments():
    result = run("--size=8", "--steps=1", "--formats=int5")
    assert result.returncode == 1 and "int5" in result.stderr and "Traceback" not in result.stderr
    assert "unknown argument what" in run("what").stderr


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is here")
def test_plot_without_matplotlib_ends_at_once():
    result = run("--steps=1000000000", "--plot=a.png")
    assert result.returncode == 1 and "--plot needs matplotlib" in result.stderr
