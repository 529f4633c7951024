"""Process-wide settings: the highest instruction set the kernels may use, and what they show.

Environment variables, read at import:
  JAX_QGEMM_MAX_ISA=NAME    the instruction set; at run time `config.max_isa`, `config.limit_isa`;
                            "avx512" means the best of AVX-512, "avx512_vnni"
  JAX_QGEMM_VERBOSE=1       a line on stderr per native call; at run time `config.verbose`
  JAX_QGEMM_PERF_MAP=1      names generated kernels for Linux perf, in /tmp/perf-PID.map
  JAX_QGEMM_DUMP=FOLDER     writes generated kernels into a folder, see `jax_qgemm.dump_kernels`
  JAX_QGEMM_HUGE_PAGES=0    leaves weights of 4 MB and more, which are moved into huge pages at the
                            fourth call, where they are

What is set at run time also counts for functions that are already compiled.
"""

import contextlib
import os
import threading
import warnings

from jax_qgemm import native
from jax_qgemm.version import __version__

_VARIABLE = "JAX_QGEMM_MAX_ISA"
_ALIASES = {"avx512": "avx512_vnni"}


class Config:
    """The settings of this process; use the one instance, `jax_qgemm.config`."""

    def __init__(self):
        self._lock = threading.Lock()
        self._base = self.isa_names[-1]
        self._limits: list[str] = []  # of the `limit_isa` blocks that are open, in all threads
        self._verbose = False

    @property
    def isa_names(self) -> tuple[str, ...]:
        """The instruction sets that have kernels, from the least to the most capable."""
        if native.extension is None:
            return ("portable", "avx2", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8")
        return tuple(native.extension.isa_names())

    @property
    def max_isa(self) -> str:
        """The highest instruction set allowed; of those the best that the CPU has is used.

        What was set, or less while `limit_isa` is active. Set it to one of `isa_names`, or to
        "avx512", which stands for "avx512_vnni"; another name raises ValueError. It has no effect
        where the extension is missing.
        """
        with self._lock:
            return self._lowest()

    @max_isa.setter
    def max_isa(self, name: str) -> None:
        self._set(name, "config.max_isa")

    @contextlib.contextmanager
    def limit_isa(self, name: str):
        """`with config.limit_isa("avx2"): …` lowers `max_isa` for a while, for all threads.

        Takes the names that `max_isa` takes. Of several that are active, nested or in other
        threads, the lowest counts. Computations that JAX runs asynchronously must be waited for
        inside the block.
        """
        name = self._resolve(name, "config.limit_isa")
        with self._lock:
            self._limits.append(name)
            self._apply()
        try:
            yield self
        finally:
            with self._lock:
                self._limits.remove(name)
                self._apply()

    @property
    def verbose(self) -> bool:
        """Whether each native call, and each kernel when generated, prints a line on stderr.

        Fields are separated by commas, in this order; the first lines of a process name them:

            jax_qgemm,exec,OP,ISA,KERNEL,TYPES,SHAPE,PLAN,THREADS,MICROSECONDS
            jax_qgemm,generate,KERNEL,BYTES,MICROSECONDS

        OP and SHAPE are gemm MxNxK (of a batch B*MxNxK, of G ragged groups G|MxNxK), quantize MxK,
        pack KxN, attention or update_kv_cache BxTxHxD; TYPES are those of the operands and the
        result, x:w:out; PLAN is key:value pairs separated by spaces. Generation is not part of a
        call's time. Setting it raises ValueError for anything but True and False; it has no effect
        where the extension is missing.
        """
        return self._verbose

    @verbose.setter
    def verbose(self, on: bool) -> None:
        if not isinstance(on, bool):
            raise ValueError(f"config.verbose: expected True or False, got {on!r}")
        self._verbose = on
        if native.extension is not None:
            native.extension.set_verbose(on, __version__)

    def _set(self, name: str, where: str) -> None:
        name = self._resolve(name, where)
        with self._lock:
            self._base = name
            self._apply()

    def _resolve(self, name: str, where: str) -> str:
        known = _ALIASES.get(name, name)
        if known not in self.isa_names:
            choices = ", ".join([*self.isa_names, *_ALIASES])
            raise ValueError(f"{where}: expected one of {choices}, got {name!r}")
        return known

    def _lowest(self) -> str:
        return min([self._base, *self._limits], key=self.isa_names.index)

    def _apply(self) -> None:
        if native.extension is not None:
            native.extension.set_max_isa(self._lowest())

    def __repr__(self) -> str:
        return f"jax_qgemm.config(max_isa={self.max_isa!r}, verbose={self.verbose!r})"


config = Config()

if os.environ.get(_VARIABLE):
    config._set(os.environ[_VARIABLE], f"environment variable {_VARIABLE}")


# Variables that only show what runs: what they ask for in vain is said, and the program goes on.
def _ignore(variable: str, why: str) -> None:
    warnings.warn(f"environment variable {variable} is ignored: {why}", stacklevel=5)


def _is_on(variable: str, default: bool = False) -> bool:
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        _ignore(variable, f"expected 0 or 1, got {value!r}")
    return {"0": False, "1": True}.get(value, default)


def _start_dump(variable: str) -> None:
    folder = os.environ.get(variable)
    if not folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        _ignore(variable, f"cannot make the folder ({e})")
        return
    native.extension.start_dump(os.path.abspath(folder))


if _is_on("JAX_QGEMM_VERBOSE"):
    config.verbose = True
if native.extension is not None:
    if _is_on("JAX_QGEMM_PERF_MAP"):
        native.extension.start_perf_map()
    _start_dump("JAX_QGEMM_DUMP")
    native.extension.set_moves_to_huge_pages(_is_on("JAX_QGEMM_HUGE_PAGES", default=True))
