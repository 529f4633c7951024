"""The libraries that are timed, each in a process of its own.

The module of each has PROGRAMS: a contestant's name → function from layers to a program. A program
computes all layers once when it is called, and has run once when it is made; `results` are those
of its last call, as arrays. VERSION, if there, is for the report.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class Library:
    """One library.

    Attributes:
      name: that of its contestants' `library`.
      title: for the report.
      module: where its PROGRAMS are.
      peer: its name on the command line; empty for this library, which is always timed.
      needs: packages that must be installed, by the name for `import` and `pip install`.
    """

    name: str
    title: str
    module: str
    peer: str = ""
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The packages among `needs` that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


_HERE = "jax_qgemm.bench.libraries"

LIBRARIES = (
    Library("own", "jax_qgemm", f"{_HERE}.own"),
    Library("xla", "XLA", f"{_HERE}.xla", "xla"),
    Library("ort", "ONNX Runtime", f"{_HERE}.ort", "ort", ("onnxruntime", "onnx")),
    Library("torch_fbgemm", "PyTorch, FBGEMM", f"{_HERE}.torch_fbgemm", "torch", ("torch",)),
    Library("torch_onednn", "PyTorch, oneDNN", f"{_HERE}.torch_onednn", "torch", ("torch",)),
)
PEERS = tuple(dict.fromkeys(library.peer for library in LIBRARIES if library.peer))


def choose(peers: Collection[str] = PEERS) -> tuple[list[Library], list[str]]:
    """This library and the given peers, as far as installed; and a line on each that is not."""
    chosen, notes = [], []
    for library in LIBRARIES:
        if library.peer and library.peer not in peers:
            continue
        if library.missing:
            notes.append(f"{library.title}: pip install {' '.join(library.needs)} adds it")
        else:
            chosen.append(library)
    return chosen, notes
