"""Batches of several dimensions, so that each may be split over devices: they are folded into one
only where the custom call is made.

An operand has all of the dimensions, in front, of size 1 where its batch is repeated; or, where all
share it, none.
"""

import math

import jax.numpy as jnp


def sizes(operands, ranks, dims: int) -> tuple[int, ...]:
    """Of a batch of so many dimensions; `ranks` are those of the operands of one call."""
    leads = [o.shape[: o.ndim - rank] for o, rank in zip(operands, ranks, strict=True)]
    own = [lead for lead in leads if len(lead) == dims]
    assert own, "no operand has the batch"
    return tuple(next((s for s in of_dim if s != 1), 1) for of_dim in zip(*own, strict=True))


def repeats(own: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    """Whether an operand may have these dimensions in front."""
    if not own:
        return True
    return len(own) == len(lead) and all(a in (1, b) for a, b in zip(own, lead, strict=True))


def fold(operand, rank: int, lead: tuple[int, ...], may_share: bool = True):
    """The batch in one dimension, or, where all share the operand and it may say so, in none."""
    own, shape = operand.shape[: operand.ndim - rank], operand.shape[operand.ndim - rank :]
    if may_share and (not own or (own != lead and math.prod(own) == 1)):
        return operand.reshape(shape)
    return jnp.broadcast_to(operand, (*lead, *shape)).reshape(math.prod(lead), *shape)


def insert(operands, axes, ranks, dims: int):
    """Operands that jax.vmap maps along `axes`, or does not (None), with that dimension in front
    of a batch of so many."""
    inserted = []
    for operand, axis, rank in zip(operands, axes, ranks, strict=True):
        if axis is not None:
            operand = jnp.moveaxis(operand, axis, 0)
            missing = 1 + dims + rank - operand.ndim
            operand = jnp.expand_dims(operand, tuple(range(1, 1 + missing)))
        elif operand.ndim > rank:
            operand = operand[None]
        inserted.append(operand)
    return inserted


def named(result, dims: int) -> dict[str, int]:
    """Names and sizes of the factors that a batch of so many dimensions is (`Split`)."""
    return {f"b{i}": size for i, size in enumerate(result.shape[:dims])}


def factors(operand, rank: int, sizes: dict[str, int]) -> tuple[str | None, ...]:
    """What an operand's dimensions of the batch are split by, given all of `named`."""
    own = operand.shape[: operand.ndim - rank]
    return tuple(
        name if size == of_batch else None
        for size, (name, of_batch) in zip(own, sizes.items(), strict=False)
    )
