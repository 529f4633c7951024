"""The kernels that this process has generated: how many, at what cost, and their machine code."""

import os
from typing import NamedTuple

from jax_qgemm import native


class KernelCacheInfo(NamedTuple):
    """Totals since the process began. All zero where the extension is missing."""

    kernels: int
    """Generated kernels. They live as long as the process."""
    bytes: int
    """Their machine code and its constants."""
    microseconds: float
    """Time spent on generating them, in all."""
    plans: int
    """Plans in the cache, each for one shape, spec, instruction set and number of threads."""
    plan_hits: int
    """Matrix products that found their plan."""
    plan_misses: int
    """Matrix products that had to make it, with the kernels that were missing."""


def kernel_cache_info() -> KernelCacheInfo:
    """The kernels and plans of this process.

    A steady state generates nothing: `kernels` and `plan_misses` stay the same from call to call.
    The portable kernels, and packing, are compiled ahead and not counted.
    """
    if native.extension is None:
        return KernelCacheInfo(0, 0, 0.0, 0, 0, 0)
    return KernelCacheInfo(**native.extension.kernel_cache_info())


def dump_kernels(folder: str | os.PathLike) -> list[str]:
    """Writes the machine code of every kernel generated so far into `folder`, made if missing.

    Each file, `jax_qgemm.FAMILY.KERNEL.bin`, is the bare code with its constants behind; an older
    one of that name is replaced. To read it:

        objdump -D -b binary -m i386:x86-64 -M intel FILE

    Returns the files' paths, in the order in which the kernels were generated; none where the
    extension is missing. Raises OSError, which names the path, where a file cannot be written.
    The environment variable JAX_QGEMM_DUMP=FOLDER does it from the start, as kernels are generated.
    """
    os.makedirs(folder, exist_ok=True)
    return [] if native.extension is None else native.extension.dump_kernels(os.fspath(folder))
