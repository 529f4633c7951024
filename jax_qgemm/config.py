"""Process-wide settings: the highest instruction set the kernels may use.

JAX_QGEMM_MAX_ISA sets it at import; `config.max_isa` and `config.limit_isa` at run time, also for
functions that are already compiled.
"""

import contextlib
import os
import threading

from jax_qgemm import native

_VARIABLE = "JAX_QGEMM_MAX_ISA"


class Config:
    """The settings of this process; use the one instance, `jax_qgemm.config`."""

    def __init__(self):
        self._lock = threading.Lock()
        self._base = self.isa_names[-1]
        self._limits: list[str] = []  # of the `limit_isa` blocks that are open, in all threads

    @property
    def isa_names(self) -> tuple[str, ...]:
        """Every name that `max_isa` accepts, from the least to the most capable."""
        if native.extension is None:
            return ("portable", "avx2", "avx_vnni", "avx512_vnni")
        return tuple(native.extension.isa_names())

    @property
    def max_isa(self) -> str:
        """The highest instruction set allowed; of those the best that the CPU has is used.

        What was set, or less while `limit_isa` is active. Setting it raises ValueError for an
        unknown name. It has no effect where the extension is missing.
        """
        with self._lock:
            return self._lowest()

    @max_isa.setter
    def max_isa(self, name: str) -> None:
        self._set(name, "config.max_isa")

    @contextlib.contextmanager
    def limit_isa(self, name: str):
        """`with config.limit_isa("avx2"): …` lowers `max_isa` for a while, for all threads.

        Of several that are active, nested or in other threads, the lowest counts. Computations
        that JAX runs asynchronously must be waited for inside the block.
        """
        self._check(name, "config.limit_isa")
        with self._lock:
            self._limits.append(name)
            self._apply()
        try:
            yield self
        finally:
            with self._lock:
                self._limits.remove(name)
                self._apply()

    def _set(self, name: str, where: str) -> None:
        self._check(name, where)
        with self._lock:
            self._base = name
            self._apply()

    def _check(self, name: str, where: str) -> None:
        if name not in self.isa_names:
            raise ValueError(f"{where}: expected one of {', '.join(self.isa_names)}, got {name!r}")

    def _lowest(self) -> str:
        return min([self._base, *self._limits], key=self.isa_names.index)

    def _apply(self) -> None:
        if native.extension is not None:
            native.extension.set_max_isa(self._lowest())

    def __repr__(self) -> str:
        return f"jax_qgemm.config(max_isa={self.max_isa!r})"


config = Config()

if os.environ.get(_VARIABLE):
    config._set(os.environ[_VARIABLE], f"environment variable {_VARIABLE}")
