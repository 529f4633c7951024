"""What a model-wide replacement did to each layer, as data and as a printed table."""

import dataclasses
import math

import jax


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer: `skipped` is the reason it was left alone, "" if it was quantized."""

    path: str
    layer: str
    shape: tuple[int, ...]
    skipped: str
    bytes_before: int
    bytes_after: int

    @property
    def quantized(self) -> bool:
        return not self.skipped


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """All layers looked at, and the size of the whole model's state before and after.

    Printed, it is a table: path, layer, what was done or why not, sizes.
    """

    qtype: str
    layers: tuple[LayerReport, ...]
    bytes_before: int
    bytes_after: int

    @property
    def quantized(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.quantized)

    @property
    def skipped(self) -> tuple[LayerReport, ...]:
        """The layers that were left as they were, each with its reason."""
        return tuple(layer for layer in self.layers if not layer.quantized)

    def summary(self) -> str:
        """One line: how many layers, and what it saved."""
        saved = f"{format_bytes(self.bytes_before)} → {format_bytes(self.bytes_after)}"
        count = len(self.quantized)
        text = f"{count} {'layer' if count == 1 else 'layers'} quantized to {self.qtype}"
        if self.skipped:
            text += f", {len(self.skipped)} left as they were"
        return f"{text}; model {saved}"

    def __str__(self) -> str:
        rows = [("path", "layer", "", "before", "after")]
        for entry in self.layers:
            done = self.qtype if entry.quantized else f"skipped: {entry.skipped}"
            shape = "×".join(map(str, entry.shape))
            sizes = format_bytes(entry.bytes_before), format_bytes(entry.bytes_after)
            rows.append((entry.path, f"{entry.layer} {shape}".strip(), done, *sizes))
        totals = format_bytes(self.bytes_before), format_bytes(self.bytes_after)
        rows.append(("whole model", "", "", *totals))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        rule = "─" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], self.summary()])


def tree_bytes(tree) -> int:
    """Bytes of all arrays (or abstract arrays) of a pytree; other leaves count nothing."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def format_bytes(count: int) -> str:
    """A size in the unit that keeps it short: 900 B, 12.3 KB, 86.7 MB."""
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "KB"
    for unit_next in ("MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, unit_next
    return f"{value:.1f} {unit}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Text columns to the left, the two sizes to the right."""
    text = [cell.ljust(width) for cell, width in zip(row[:-2], widths, strict=False)]
    sizes = [cell.rjust(width) for cell, width in zip(row[-2:], widths[-2:], strict=True)]
    return "  ".join(text + sizes)
