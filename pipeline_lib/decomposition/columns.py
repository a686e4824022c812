"""Columns: dense readouts are evaluated for as many columns of `z` at a time as memory allows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pipeline_lib.decomposition.readout import Run

#: Memory that the dense readouts of a batch may take at a time, bytes.
COLUMN_BYTES = 2**29


class ColumnBytes:
    """What one column of `z` takes for one image, measured on the first column that is read."""

    def __init__(self) -> None:
        self.per_image = 0.0

    def at_once(self, batch: int) -> int:
        """Columns of `z` that are evaluated together, at least 1."""
        if not self.per_image:
            return 1
        return max(1, int(COLUMN_BYTES / (self.per_image * batch)))

    def parts(self, run: Run, columns: Tensor) -> Iterator[tuple[slice, Run]]:
        """Slices of `columns` [d, k], each with the run that evaluates it."""
        begin, width = 0, columns.shape[1]
        while begin < width:
            part = slice(begin, min(width, begin + self.at_once(run.batch)))
            piece = run.for_columns(columns[:, part])
            yield part, piece
            if not self.per_image:
                self.per_image = held_bytes(piece) / run.batch
            begin = part.stop


def held_bytes(run: Run) -> int:
    """Bytes of the tensors that a run remembers, shared memory counted once."""
    storages = [tensor.untyped_storage() for tensor in run.memo.values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
