"""Loads the compiled extension and registers its FFI targets, without initialising a backend.

Where the extension is missing everything works through XLA (`reference.py`), after one warning.
"""

import importlib
import warnings

import jax

try:
    extension = importlib.import_module("jax_qgemm._native")
except ImportError as e:
    extension = None
    _why = f"the compiled extension could not be loaded ({e})"
    warnings.warn(
        f"jax_qgemm: {_why}. All functions work through XLA, many times slower. For the fast "
        "kernels build the package: `pip install .` in a checkout, with g++ and on x86-64 "
        "Debian's libxbyak-dev installed. Where that is done, run Python from another folder: in a "
        "checkout it finds the sources before the package.",
        stacklevel=4,  # the user's import,
    )

targets: tuple[str, ...] = ()
"""Names of the registered FFI targets; empty where the extension is missing."""

if extension is not None:
    for _name, _capsule in extension.registrations().items():
        jax.ffi.register_ffi_target(_name, _capsule, platform="cpu", api_version=1)
        targets += (_name,)


def cpu_info() -> dict:
    """What the CPU offers and what runs on it.

    Keys: vendor, brand, features (list), isa_available (ascending; empty where the extension is
    missing), isa_selected, jit (whether kernels are generated), l1d, l2, l3 (bytes), why (the
    reason why a better instruction set is not used, else empty).
    """
    if extension is not None:
        return extension.cpu_info()
    unknown = {
        "vendor": "",
        "brand": "",
        "features": [],
        "isa_available": [],
        "l1d": 0,
        "l2": 0,
        "l3": 0,
    }
    return unknown | {"isa_selected": "xla", "jit": False, "why": _why}
