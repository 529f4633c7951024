"""How a primitive is computed in parts, on devices that hold parts of its operands.

A `Split` names what dimensions have in common. From it follow the type of results (explicit
sharding), the rule for XLA's propagation (Shardy), and what each device computes, without
gathering anything: the same primitive on its parts, then a sum over what was summed in parts.
"""

import dataclasses
import math

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_qgemm.explicit import axes_of, without_mesh

Dims = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """The dimensions of a call by what they are.

    Attributes:
      operands, results: for each its dimensions: the name of a factor, or None for what is never
        split. One with a factor is as long as this, or each part of the factor has so many
        elements of it, one after the other.
      sizes: of the factors: how many parts there are at most.
      summed: factors of operands alone: the results are sums over them.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    sizes: dict[str, int]
    summed: tuple[str, ...] = ()

    def axes(self, mesh_shape, specs) -> dict[str, tuple[str, ...]]:
        """Factor → mesh axes that it is split over, from the first that splits it of results,
        then operands. Axes that would leave uneven parts do not."""
        axes, used = {}, set()
        for dims, spec in zip((*self.results, *self.operands), specs, strict=True):
            for factor, entry in zip(dims, tuple(spec), strict=False):
                if factor is None or entry is None or factor in axes:
                    continue
                names = axes_of(entry)
                parts = math.prod(mesh_shape[name] for name in names)
                if used.isdisjoint(names) and self.sizes[factor] % parts == 0:
                    axes[factor] = names
                    used |= set(names)
        return axes

    def shardings(self, mesh, dims: tuple[Dims, ...], axes):
        return tuple(NamedSharding(mesh, P(*(axes.get(factor) for factor in d))) for d in dims)

    def rule(self, operand_shapes, result_shapes):
        """Shardy's, and the sizes of its factors."""
        sizes, unsplit, whole, extra = {}, [], set(), 0

        def name_of(factor, length):
            nonlocal extra
            if factor is not None and self.sizes[factor] == length:
                whole.add(factor)
                return factor
            extra += 1
            own = f"own{extra}"
            if factor is None or self.sizes[factor] == 1:  # which Shardy takes alone only
                unsplit.append(own)
                return own
            sizes.update({factor: self.sizes[factor], own: length // self.sizes[factor]})
            return f"({factor} {own})"

        def text(every, shapes):
            return ", ".join(
                " ".join(name_of(*pair) for pair in zip(dims, shape, strict=True))
                for dims, shape in zip(every, shapes, strict=True)
            )

        rule = f"{text(self.operands, operand_shapes)} -> {text(self.results, result_shapes)}"
        known = {name: size for name, size in sizes.items() if name not in whole}
        return rule, {"need_replication_factors": tuple(unsplit)} | known


def with_sharding(split: Split, avals, results):
    """Results, ShapedArrays, as avals with the shardings that the operands' types say they have,
    and varying over the manual axes that these vary over."""
    mesh = next(a.sharding.mesh for a in avals if not a.sharding.mesh.empty)
    specs = [P()] * len(results) + [a.sharding.spec for a in avals]
    axes = split.axes(dict(mesh.shape), specs)
    return [
        avals[0].update(shape=r.shape, dtype=r.dtype, weak_type=False, sharding=sharding)
        for r, sharding in zip(results, split.shardings(mesh, split.results, axes), strict=True)
    ]


def partitioned(bind, split: Split, localize, avals, results):
    """`bind` as a function of operands that XLA may split.

    Args:
      bind: operands and parameters → results.
      split: of operands of these avals and these results.
      localize: factor → how many parts there are, to the parameters of one part.
    """

    def whole(*operands):
        return tuple(bind(*operands, **localize({})))

    def partition(mesh, arguments, shapes):
        specs = [s.sharding.spec for s in (*shapes, *arguments)]
        axes = split.axes(dict(mesh.shape), specs)
        parts = {
            factor: math.prod(mesh.shape[name] for name in names) for factor, names in axes.items()
        }
        summed = [name for factor in split.summed for name in axes.get(factor, ())]

        def of_device(*operands):
            found = bind(*operands, **localize(parts))
            add = without_mesh(lambda r: jax.lax.psum(r, summed))
            return tuple(add(r) if summed else r for r in found)

        return (
            mesh,
            of_device,
            split.shardings(mesh, split.results, axes),
            split.shardings(mesh, split.operands, axes),
        )

    function = custom_partitioning(whole)
    rule, sizes = split.rule([a.shape for a in avals], [r.shape for r in results])
    summed = tuple(factor for factor in split.summed if split.sizes[factor] > 1)
    function.def_partition(partition, sharding_rule=rule, reduction_factors=summed, **sizes)
    return function
