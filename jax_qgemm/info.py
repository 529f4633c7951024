"""`python -m jax_qgemm.info`: versions, CPU and what runs on it, as a bug report needs."""

import argparse
import os
import platform
from importlib import metadata

from jax_qgemm import native
from jax_qgemm.config import config
from jax_qgemm.kernels import kernel_cache_info

_PACKAGES = ("jax-qgemm", "jax", "jaxlib", "numpy", "flax")


def report() -> str:
    """The text that the command prints. Does not initialise a JAX backend."""
    cpu, cache = native.cpu_info(), kernel_cache_info()._asdict()
    rows = [(name, _version(name)) for name in _PACKAGES]
    rows += [
        ("python", platform.python_version()),
        ("platform", platform.platform()),
        ("cpu", f"{cpu['brand'] or platform.processor() or platform.machine()}"),
        ("caches", " ".join(f"{c}={cpu[c] // 1024}KiB" for c in ("l1d", "l2", "l3"))),
        ("threads", _threads()),
        ("isa available", " ".join(cpu["isa_available"]) or "none"),
        ("isa selected", cpu["isa_selected"] + (f" ({cpu['why']})" if cpu["why"] else "")),
        ("isa ceiling", config.max_isa),
        ("code generation", "yes" if cpu["jit"] else "no"),
        ("kernel cache", " ".join(f"{k}={v}" for k, v in cache.items())),
        ("environment", _environment()),
        ("ffi targets", " ".join(native.targets) or "none"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _threads() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("NPROC")
    return f"{usable} of {os.cpu_count()}" + (f", NPROC={limit}" if limit else "")


def _environment() -> str:
    mine = sorted(name for name in os.environ if name.startswith("JAX_QGEMM_"))
    return " ".join(f"{name}={os.environ[name]}" for name in mine) or "no JAX_QGEMM_ variable"


if __name__ == "__main__":
    argparse.ArgumentParser("python -m jax_qgemm.info", description=__doc__).parse_args()
    print(report())
