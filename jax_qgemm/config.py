"""Process-wide settings: the highest instruction set the kernels may use.

JAX_QGEMM_MAX_ISA sets it at import; `config.max_isa` and `config.limit_isa` at run time, also for
functions that are already compiled.
"""

import contextlib
import os

from jax_qgemm import native

_VARIABLE = "JAX_QGEMM_MAX_ISA"


class Config:
    """The settings of this process; use the one instance, `jax_qgemm.config`."""

    def __init__(self):
        self._max_isa = self.isa_names[-1]

    @property
    def isa_names(self) -> tuple[str, ...]:
        """Every name that `max_isa` accepts, from the least to the most capable."""
        if native.extension is None:
            return ("portable", "avx2", "avx_vnni", "avx512_vnni")
        return tuple(native.extension.isa_names())

    @property
    def max_isa(self) -> str:
        """The highest instruction set allowed; of those the best that the CPU has is used.

        Setting it raises ValueError for an unknown name. It has no effect where the extension
        is missing.
        """
        return self._max_isa

    @max_isa.setter
    def max_isa(self, name: str) -> None:
        self._set(name, "config.max_isa")

    @contextlib.contextmanager
    def limit_isa(self, name: str):
        """`with config.limit_isa("avx2"): …` sets `max_isa` for a while, for all threads.

        Computations that JAX runs asynchronously must be waited for inside the block.
        """
        before = self._max_isa
        self._set(name, "config.limit_isa")
        try:
            yield self
        finally:
            self.max_isa = before

    def _set(self, name: str, where: str) -> None:
        if name not in self.isa_names:
            raise ValueError(f"{where}: expected one of {', '.join(self.isa_names)}, got {name!r}")
        if native.extension is not None:
            native.extension.set_max_isa(name)
        self._max_isa = name

    def __repr__(self) -> str:
        return f"jax_qgemm.config(max_isa={self._max_isa!r})"


config = Config()

if os.environ.get(_VARIABLE):
    config._set(os.environ[_VARIABLE], f"environment variable {_VARIABLE}")
