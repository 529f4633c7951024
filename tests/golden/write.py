"""Writes programs for `test_export.test_golden_programs`, a folder for the JAX that runs this.

    python tests/golden/write.py

For a new version of a custom call, or a new oldest JAX; what a release has written stays.
"""

import pathlib

import jax
import numpy as np
from jax import export

import jax_qgemm as jq

FOLDER = pathlib.Path(__file__).parent


def product(x, w, bias):
    y = jq.dot(x, w, bias=bias, activation="relu")
    _, back = jax.vjp(lambda x: jq.dot(x, w), x)
    return y, back(y)[0]


def main() -> None:
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")  # no paths
    folder = FOLDER / f"jax_{jax.__version__.replace('.', '_')}"
    folder.mkdir(exist_ok=True)
    with np.load(FOLDER / "arrays.npz") as arrays:
        for name in sorted({n.split("/")[0] for n in arrays if "/" in n}):
            prefix = f"{name}/w_"
            w = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
            operands = arrays["x"], jq.PackedWeight.from_arrays(w), arrays["bias"]
            for got, part in zip(jax.jit(product)(*operands), ("y", "back"), strict=True):
                np.testing.assert_array_equal(got, arrays[f"{name}/{part}"], f"{name}/{part}")
            program = export.export(jax.jit(product), disabled_checks=jq.export_checks())(*operands)
            (folder / f"{name}.jaxexport").write_bytes(program.serialize())


if __name__ == "__main__":
    main()
