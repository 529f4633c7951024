"""Sharding metadata of a float kernel (K, N), for the parts of the packed weight in its place.

Packed weights are split by columns in whole panels, by the last axis of each part; by rows as a
`RowParallelWeight`, by the first.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jax_qgemm import errors
from jax_qgemm.packing import pack_weight
from jax_qgemm.types import PackedWeight

PANEL = 64
"""Columns that are never split."""

_CARRIED = ("mesh", "sharding_rules", "eager_sharding")


class KernelSharding(NamedTuple):
    """How a packed weight is split where its float kernel was: metadata of nnx.

    Attributes:
      parts: of K; 1 where it is not split by rows.
      rows, columns: axes of the mesh, or logical names that rules map to them, or None.
      carried: other metadata of the kernel's that goes with it; None where there is none at all.
    """

    parts: int = 1
    rows: Any = None
    columns: Any = None
    carried: dict[str, Any] | None = None

    def metadata(self, part: jax.Array) -> dict[str, Any]:
        """That of a part of the packed weight."""
        if self.carried is None:
            return {}
        split = [self.rows] * (self.parts > 1)
        names = (*split, *[None] * (part.ndim - len(split) - 1), self.columns)
        return {"out_sharding": names, **self.carried}


def of_kernel(kernel: nnx.Variable, qtype: str) -> KernelSharding:
    """What there is of `kernel`'s sharding in the packed weight of this format.

    Columns that are not whole panels for each device stay together, and so do rows where the mesh
    is not known yet or would split groups.
    """
    metadata = dict(kernel.get_metadata())
    if not metadata.get("out_sharding"):
        return KernelSharding()
    names = metadata["out_sharding"]
    if isinstance(names, NamedSharding):
        metadata["mesh"], names = names.mesh, names.spec
        mapped = names
    else:
        mapped = nnx.get_partition_spec(kernel)  # after rules
        mapped = jax.tree.leaves(mapped, is_leaf=lambda node: isinstance(node, PartitionSpec))[0]
    rows, columns = _two(names)
    mesh = _mesh(kernel[...], metadata)
    row_parts, column_parts = (_size(axes, mesh) for axes in _two(mapped))
    k, n = kernel.shape
    group = errors.weight_format("QLinear", "qtype", qtype).group or 1
    if row_parts is None or k % (row_parts * group):
        row_parts = 1
    return KernelSharding(
        parts=row_parts,
        rows=rows if row_parts > 1 else None,
        columns=None if n % (PANEL * (column_parts or 1)) else columns,
        carried={name: metadata[name] for name in _CARRIED if name in metadata},
    )


def pack_boxed(kernel, qtype: str) -> PackedWeight:
    """`pack_weight` of what may be in a box of linen's metadata (`nn.with_partitioning`): then each
    part is in one, too, that splits it by columns."""
    packed = pack_weight(nn.meta.unbox(kernel), qtype)
    if not isinstance(kernel, nn.Partitioned):
        return packed
    columns = _two(kernel.names)[1] if packed.shape[-1] % PANEL == 0 else None
    return jax.tree.map(
        lambda part: kernel.replace(value=part, names=(*[None] * (part.ndim - 1), columns)), packed
    )


def _two(names) -> tuple:
    return (*names, None, None)[:2]


def _mesh(kernel: jax.Array, metadata):
    """The mesh that the kernel is on or will be, or an empty one."""
    sharding = getattr(jax.typeof(kernel), "sharding", None)
    known = (getattr(sharding, "mesh", None), metadata.get("mesh"))
    meshes = [mesh for mesh in known if mesh is not None and not mesh.empty]
    return meshes[0] if meshes else jax.sharding.get_abstract_mesh()


def _size(axes, mesh) -> int | None:
    """Into how many parts these axes of the mesh split; None where it does not have them."""
    axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
    if not all(axis in mesh.shape for axis in axes):
        return None
    return math.prod(mesh.shape[axis] for axis in axes)
