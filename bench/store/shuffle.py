"""How well the loader mixes: the order of docs/dataset-format.md section 7, computed here from the
page's words alone, against a full permutation.

Usage: shuffle.py    (needs numpy; a second or two)
64 row groups of 512 rows. Distance: mean distance in the dataset between samples that follow each
other in an epoch. Together: how often they share a row group. In a batch: row groups in a batch of
256 samples.
"""
import struct

import numpy


class ChaCha8:
    def __init__(self, seed, epoch, stream):
        self.key = struct.unpack("<8I", struct.pack("<3Q", seed, epoch, stream) + b"lapflow1")

    def outputs(self, count):
        """The first `count` 64-bit outputs, as Python integers."""
        blocks = count // 8 + 1
        state = numpy.zeros((16, blocks), numpy.uint32)
        state[:4] = numpy.frombuffer(b"expand 32-byte k", "<u4")[:, None]
        state[4:12] = numpy.array(self.key, numpy.uint32)[:, None]
        state[12] = numpy.arange(blocks)
        x = state.copy()

        def quarter(a, b, c, d):
            for target, other, mixed, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[target] += x[other]
                x[mixed] ^= x[target]
                x[mixed] = (x[mixed] << numpy.uint32(turn)) | (x[mixed] >> numpy.uint32(32 - turn))

        for _ in range(4):
            for i in range(4):
                quarter(i, 4 + i, 8 + i, 12 + i)
            for i in range(4):
                quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
        return (x + state).T.copy().view("<u8").ravel()[:count].tolist()


def permute(items, seed, epoch, stream):
    items = list(items)
    for i, r in zip(range(len(items) - 1, 0, -1), ChaCha8(seed, epoch, stream).outputs(len(items))):
        pick = r * (i + 1) >> 64
        items[i], items[pick] = items[pick], items[i]
    return items


def order(sizes, seed, epoch, window_rows):
    groups = permute(range(len(sizes)), seed, epoch, 2**64 - 1)
    rows, window, index = [], [], 0
    for place, group in enumerate(groups):
        window += [(group, row) for row in range(sizes[group])]
        if len(window) >= window_rows or place + 1 == len(groups):
            rows += permute(window, seed, epoch, index)
            window, index = [], index + 1
    return rows


def quality(rows, size):
    position = numpy.array([group * size + row for group, row in rows])
    group = numpy.array([group for group, _ in rows])
    in_batch = [len(set(batch)) for batch in group[: len(group) // 256 * 256].reshape(-1, 256).tolist()]
    return (
        numpy.abs(numpy.diff(position)).mean(),
        (numpy.diff(group) == 0).mean(),
        numpy.mean(in_batch),
    )


def main():
    # The order that the store's test `the_order_never_changes` holds fast.
    fixed = [(0, 0), (2, 0), (0, 2), (1, 0), (1, 1), (2, 1), (0, 1), (1, 2)]
    assert order([3, 3, 2], 7, 1, 6) == fixed, order([3, 3, 2], 7, 1, 6)
    count, size = 64, 512
    for windows in (1, 4, 16, 64):
        found = []
        for epoch in range(5):
            mixed = order([size] * count, 5, epoch, windows * size)
            full = numpy.random.default_rng(epoch).permutation(count * size)
            full = [(row // size, row % size) for row in full.tolist()]
            found.append((quality(mixed, size), quality(full, size)))
        ratios = [mixed[0] / full[0] for mixed, full in found]
        together = numpy.mean([mixed[1] for mixed, _ in found]), numpy.mean([full[1] for _, full in found])
        batch = numpy.mean([mixed[2] for mixed, _ in found]), numpy.mean([full[2] for _, full in found])
        print(
            f"{windows:3} row groups mixed: distance {min(ratios):.3f} to {max(ratios):.3f} of a full "
            f"permutation's, together {together[0]:.4f} (full {together[1]:.4f}), "
            f"row groups in a batch {batch[0]:.1f} (full {batch[1]:.1f})"
        )


if __name__ == "__main__":
    main()
