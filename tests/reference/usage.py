"""What docs/format.md says of records that follow from others: usage records and their totals, edges, sketches."""
import struct

import numpy as np

import records
from arithmetic import converted
from records import COMPACT, DELTA, DTYPE_BYTES, F32, FLOATS, PATTERNS, PROJECTED


def varint(number):
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])


def short_id(key):
    _, low, ordinal = struct.unpack(">QQH", key)
    return low ^ ordinal * 0x9e3779b97f4a7c15 % 2**64


class Counted:
    """A store's records."""

    def __init__(self, store):
        self.store = store
        self.record_bytes = {key: len(key) + len(value) for key, value in store.db.items("tensors")}
        self.tensors = {key: store.tensor(key) for key in self.record_bytes}
        self.files = {key: (records.parse_file(value), len(key) + len(value)) for key, value in store.db.items("files")}

    def has_sketch(self, key):
        return self.tensors[key].dtype in FLOATS and self.tensors[key].frame.elements >= 1 << 16

    def cost(self, key):
        """Of a tensor: its record, blocks, edges and sketch, with their keys."""
        tensor = self.tensors[key]
        cost = self.record_bytes[key] + 12 * tensor.blocks + tensor.coded_bytes
        if tensor.frame.encoding == DELTA:
            cost += 36 * len(tensor.bases)
        if self.has_sketch(key) and tensor.frame.encoding != COMPACT:
            shape = b"".join(map(varint, [len(tensor.dimensions), *tensor.dimensions]))
            cost += 18 + 2 + len(shape) + 1 + 2 * 64
        return cost

    def totals(self):
        cost = sum(map(self.cost, self.tensors)) + sum(size for _, size in self.files.values())
        return b"\1" + varint(self.store.catalog.next_model) + varint(cost)

    def record(self, sha256):
        file, size = self.files[sha256]
        own, literal, repeated = {}, 0, 0  # own: tensor -> bytes and the byte of its kind, in order
        for extent in file.extents:
            if not extent.tensor:
                literal += extent.bytes
            elif extent.tensor not in own:
                kind = 2 * self.tensors[extent.tensor].frame.encoding + bool(extent.name)
                own[extent.tensor] = [extent.bytes, kind + 128 * (extent.kind == records.PART)]
            elif extent.kind == records.PART:
                own[extent.tensor][0] += extent.bytes
            else:
                repeated += extent.bytes
        for key in list(own):
            if self.tensors[key].frame.encoding in (COMPACT, PROJECTED):
                for base in (segment.base for view in self.tensors[key].parts for segment in view if segment.base):
                    own.setdefault(base, [0, 2 * self.tensors[base].frame.encoding])
        bases, found = set(), set(own)
        while found:
            more = self.tensors[found.pop()].bases - bases - own.keys()
            bases |= more
            found |= more
        data = b"\1" + bytes([file.kind]) + b"".join(map(varint, [size, literal, repeated, len(own)]))
        for key, (content_bytes, kind) in own.items():
            data += struct.pack("<Q", short_id(key)) + varint(self.cost(key)) + varint(content_bytes) + bytes([kind])
        data += varint(len(bases))
        for base, cost in sorted((short_id(key), self.cost(key)) for key in bases):
            data += struct.pack("<Q", base) + varint(cost)
        return data

    def edges(self):
        deltas = {key: tensor for key, tensor in self.tensors.items() if tensor.frame.encoding == DELTA}
        return {base + key for key, tensor in deltas.items() for base in tensor.bases}

    def sketches(self):
        """Whose sketches there are and what they say, in a store from which nothing was removed."""
        extents = [extent for file, _ in self.files.values() for extent in file.extents]
        keys = {extent.tensor for extent in extents if extent.kind == records.WHOLE and self.has_sketch(extent.tensor)}
        return {key: self.sketch(key) for key in keys}

    def sketch(self, key):
        """64 elements as BF16, cut off."""
        tensor = self.tensors[key]
        count = tensor.frame.elements
        content = np.frombuffer(self.store.contents({key})[key], PATTERNS[DTYPE_BYTES[tensor.dtype]])
        sample = content[[(2 * i + 1) * count // 128 for i in range(64)]]
        shape = b"".join(map(varint, [len(tensor.dimensions), *tensor.dimensions, 64]))
        values = converted(sample, tensor.dtype, F32) >> np.uint32(16)
        return bytes([1, tensor.dtype]) + shape + values.astype("<u2").tobytes()
