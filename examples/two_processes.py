"""One model on several machines: JAX's own runtime, here as two processes on this machine.

Each process holds a half of every weight (tensor parallel: columns) and of the batch (data
parallel), or all of one of them. jit computes the products where the parts are; between layers
activations are gathered, by gloo. The result is that of one process, bit for bit.

    python examples/two_processes.py

starts the other process itself. On machines of a cluster, start it on each of them:

    python examples/two_processes.py --coordinator=HOST:PORT --processes=2 --process=0   # and 1
"""

import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, flags
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_qgemm

_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; None: start all")
_PROCESSES = flags.DEFINE_integer("processes", 2, "how many there are", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", 0, "which of them this is", lower_bound=0)
_FORMAT = flags.DEFINE_string("format", "int8", "format of the weights")
flags.register_validator(
    _COORDINATOR,
    lambda text: text is None or re.fullmatch(r".+:\d+", text) is not None,
    "expected HOST:PORT",
)

WIDTHS, ROWS = (256, 1024, 512), 32


def model(x: jax.Array, layers) -> jax.Array:
    """Two layers; loss and gradient of x are below."""
    one, two = layers
    return jax_qgemm.dot(jax_qgemm.dot(x, one, activation="relu"), two)


def slope(x: jax.Array, layers) -> jax.Array:
    return jax.grad(lambda x: (model(x, layers) ** 2).sum())(x)


def arrays(form: str):
    """x and the packed layers: the same in each process."""
    rng = np.random.default_rng(0)
    kernels = [
        rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))
        for shape in itertools.pairwise(WIDTHS)
    ]
    x = rng.standard_normal((ROWS, WIDTHS[0])).astype(np.float32)
    return x, [jax_qgemm.pack_weight(kernel, form) for kernel in kernels]


def put(array, mesh: jax.sharding.Mesh, *spec):
    """A global array of one that every process has."""
    sharding = NamedSharding(mesh, P(*spec))
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def split(w: jax_qgemm.PackedWeight, mesh: jax.sharding.Mesh, axis: str | None):
    """A packed weight by columns: the last axis of each of its parts."""
    return jax.tree.map(lambda part: put(part, mesh, *(None,) * (part.ndim - 1), axis), w)


def run(form: str) -> None:
    """In each of the processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("devices",))
    x, layers = arrays(form)
    alone = np.asarray(model(x, layers)), np.asarray(slope(x, layers))
    for name, of_rows, of_columns in (
        ("tensor parallel", None, "devices"),
        ("data parallel", "devices", None),
    ):
        parts = put(x, mesh, of_rows), [split(w, mesh, of_columns) for w in layers]
        outs = [jax.jit(f)(*parts) for f in (model, slope)]
        y, gradient = (multihost_utils.process_allgather(out, tiled=True) for out in outs)
        same = np.array_equal(y, alone[0])
        far = np.abs(gradient - alone[1]).max() / np.abs(alone[1]).max()
        if jax.process_index() == 0:
            says = "the same bits as" if same else "NOT equal to"
            print(
                f"{name}: {says} one process; gradient within {far:.1e}; "
                f"{jax.process_count()} processes"
            )
        if not same or far > 1e-5:
            sys.exit(1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_all() -> bool:
    """Whether all processes ended well; when one does not, the others are stopped."""
    command = [sys.executable, *sys.argv, f"--coordinator=localhost:{free_port()}"]
    processes: list[subprocess.Popen] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops all, as Ctrl-C does
    try:
        for process in range(_PROCESSES.value):
            processes.append(subprocess.Popen([*command, f"--process={process}"]))
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    for process in processes:
        process.kill()  # those that still run
    codes = [process.wait() for process in processes]
    return not any(codes)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"unknown argument {argv[1]}: see --help")
    if _COORDINATOR.value is None:
        sys.exit(0 if start_all() else 1)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    try:
        run(_FORMAT.value)
    except ValueError as wrong:
        sys.exit(str(wrong))
    finally:
        jax.distributed.shutdown()


if __name__ == "__main__":
    app.run(main)
