"""The records of docs/format.md, section Records, and the frames that lie in tensor records."""
import collections
import math
import re
import struct
from types import SimpleNamespace

import numpy as np

from libraries import Corrupt, Unsupported, require, unpack_zstd

(OPAQUE, BOOL, U8, I8, E4M3, E5M2, U16, I16, F16, BF16, U32, I32, F32, U64, I64, F64) = range(16)
DTYPE_BYTES = (1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8)
PATTERNS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by the bytes of a dtype
FLOATS = {E4M3, E5M2, F16, BF16, F32, F64}
RAW, ZSTD, SELF, DELTA, COMPACT, PROJECTED = range(6)
LITERAL, WHOLE, PART = range(3)
FEATURES = {"executable", "compact", "derived"}
MAX_BODY = 64 << 20

# Of a view: `elements` elements of tensor `base` from its element `first` on; where base is None they are zero.
Segment = collections.namedtuple("Segment", "elements base first")
CompactSegment = collections.namedtuple("CompactSegment", "rows columns rank mask residual wide nearest group biases")
Extent = collections.namedtuple("Extent", "kind name bytes literal tensor offset")


class Fields:
    """Takes one field after another from a record; `end` says that nothing may be left."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def left(self):
        return len(self.data) - self.at

    def bytes(self, count):
        require(count <= self.left(), "a record ends early")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, form):
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))[0]

    def u8(self):
        return self.bytes(1)[0]

    def varint(self):
        value, length = 0, 0
        while True:
            byte = self.u8()
            value |= (byte & 127) << 7 * length
            length += 1
            if byte < 128:
                break
        require(value < 1 << 64 and length <= 10 and (byte > 0 or length == 1), "a varint is too long")
        return value

    def text(self):
        return self.bytes(self.varint())

    def path(self, most):
        """A model's name or a file's path."""
        text = self.text()
        path = text.decode()
        require(len(text) <= most and not re.search("[\0-\x1f\x7f-\x9f]", path), "a path")
        require(not {"", ".", ".."}.intersection(path.split("/")), "a path")
        return path

    def several(self, take, bytes_each=1):
        """A count, then so many things, which take at least so many bytes each."""
        count = self.varint()
        require(count * bytes_each <= self.left(), "a record ends early")
        return [take() for _ in range(count)]

    def tensor_key(self):
        """The key of family `tensors` from the id in a record."""
        low, high, ordinal = self.number("Q"), self.number("Q"), self.number("H")
        return struct.pack(">QQH", high, low, ordinal)

    def end(self):
        require(self.left() == 0, "a record has bytes too many")


def fields_of(data, known):
    """The version of a record, of those that are known, and its other fields."""
    fields = Fields(data)
    version = fields.u8()
    if not 1 <= version <= known:
        raise Unsupported(f"version {version} of a record")
    return version, fields


def unpacked(data):
    """The same of a record whose fields are one zstd frame in version 2."""
    version, fields = fields_of(data, 2)
    if version == 2:
        size, packed = fields.varint(), fields.bytes(fields.left())
        require(size <= MAX_BODY and (size <= 4 << 20 or size <= 4096 * len(packed)), "a packed record is too large")
        fields = Fields(unpack_zstd(packed, size))
    return version, fields


def parse_frame(data):
    fields = Fields(data)
    encoding, dtype = fields.u8(), fields.u8()
    if encoding > PROJECTED or dtype > F64:
        raise Unsupported(f"encoding {encoding} of dtype {dtype}")
    coded_dtype = fields.u8() if encoding < COMPACT else dtype
    frame = SimpleNamespace(encoding=encoding, dtype=dtype, coded_dtype=coded_dtype, elements=fields.varint(),
                            block_elements=fields.varint())
    require(coded_dtype == dtype or (coded_dtype, dtype) == (BF16, F32), "coded dtype")
    require(1 <= frame.block_elements <= 1 << 20, "size of blocks")
    require(dtype in FLOATS or encoding not in (DELTA, COMPACT), "a delta of integers")
    if encoding in (SELF, DELTA):
        flags = fields.u8()
        require(flags <= (encoding == SELF), "flags of a frame")
        frame.low_bit = flags == 1
        frame.exponent_low = fields.varint() if encoding == DELTA else 0
        require(frame.exponent_low <= 2047, "exponent_low")
        contexts = fields.u8()
        require(contexts <= (16 if encoding == DELTA else 4), "count of contexts")
        frame.contexts = parse_tables(fields.bytes(fields.left()), contexts, encoding, DTYPE_BYTES[coded_dtype])
    elif encoding == COMPACT:
        frame.seed = fields.number("I")
        frame.segments = fields.several(lambda: parse_compact_segment(fields), 4)
        require(sum(s.rows * s.columns for s in frame.segments) == frame.elements, "segments do not tile the tensor")
    elif encoding == PROJECTED:
        frame.columns, frame.depth, flags = fields.varint(), fields.varint(), fields.u8()
        require(dtype in (BF16, F16, F32) and flags < 2, "a projected tensor's dtype or flags")
        require(frame.columns > 0 and frame.elements % frame.columns == 0 and
                0 < frame.depth <= (1 << 26) // frame.columns, "a projected tensor's size")
        frame.norm = flags == 1
    fields.end()
    return frame


def parse_tables(data, count, encoding, value_bytes):
    """Of each context its symbols: pairs of raw_bits and freq."""
    bits, at = int.from_bytes(data, "little"), 0

    def take(width):
        nonlocal at
        at += width
        require(at <= 8 * len(data), "tables end early")
        return bits >> at - width & (1 << width) - 1

    contexts = []
    for _ in range(count):
        symbols, left = take(4 if encoding == DELTA else 7), 1024
        require(symbols <= (8 if encoding == DELTA else 64), "too many symbols")
        contexts.append([])
        for i in range(symbols):
            raw_bits = take({1: 4, 2: 5, 4: 6, 8: 7}[value_bytes])
            freq = take(10) if i + 1 < symbols else left
            left -= freq
            require(raw_bits <= 8 * value_bytes and left >= 0, "a symbol's bits or frequency")
            contexts[-1].append((raw_bits, freq))
    require(bits >> at == 0 and (at + 7) // 8 == len(data), "padding of tables")
    return contexts


def parse_compact_segment(fields):
    rows, columns, rank, flags = fields.varint(), fields.varint(), fields.varint(), fields.u8()
    mask, residual, wide, nearest = (bool(flags & 1 << bit) for bit in range(4))
    require(rows > 0 and columns > 0 and rank <= 1024 and rank * columns <= 1 << 24, "a segment's shape")
    require(flags < 16 and (residual or not wide), "a segment's flags")
    if mask:
        mask = fields.bytes((rows + 7) // 8)
        require(int.from_bytes(mask, "little") >> rows == 0, "padding of a row mask")
    group, biases = (fields.varint(), fields.bytes(3)) if residual else (0, b"")
    fields.u8()  # the drift code, for people
    return CompactSegment(rows, columns, rank, mask, residual, wide, nearest, group, biases)


def parse_segment(fields):
    kind, elements = fields.u8(), fields.varint()
    if kind > 1:
        raise Unsupported(f"view segment of kind {kind}")
    require(elements > 0, "an empty view segment")
    return Segment(elements, *((None, 0) if kind else (fields.tensor_key(), fields.varint())))


def parse_tensor(data):
    """Its `view` is that of a delta or compact tensor; `parts` are three more views, the factors, residual and scales
    of a compact tensor, or the weight, axes and norm of a projected one."""
    version, fields = unpacked(data)
    tensor = SimpleNamespace(dtype=fields.u8(), dimensions=fields.several(fields.varint))
    tensor.bytes, tensor.coded_bytes = fields.varint(), fields.varint()
    tensor.push, tensor.first_block, tensor.blocks = fields.varint(), fields.varint(), fields.varint()
    tensor.depth, tensor.frame = fields.u8(), parse_frame(fields.text())
    views = [fields.several(lambda: parse_segment(fields), 2) for _ in range(4 if version > 1 else 1)]
    fields.end()
    frame, (tensor.view, *tensor.parts) = tensor.frame, views
    tensor.bases = {segment.base for view in views for segment in view if segment.base}
    require(len(tensor.dimensions) <= 64 and frame.dtype == tensor.dtype, "a tensor's rank or dtype")
    require(tensor.bytes == frame.elements * DTYPE_BYTES[frame.dtype], "a tensor's bytes")
    require(frame.dtype == OPAQUE or frame.elements == math.prod(tensor.dimensions), "a tensor's dimensions")
    require((frame.encoding >= COMPACT) == (version == 2), "a tensor's encoding")
    require(tensor.blocks == (0 if version == 2 else -(-frame.elements // frame.block_elements)), "a tensor's blocks")
    require(tensor.first_block + tensor.blocks < (1 << 32 if version == 1 else 1), "a tensor's blocks")
    require(bool(tensor.depth) == bool(tensor.bases), "a tensor's depth")
    seen, *parts = [sum(segment.elements for segment in view) for view in views]
    require(seen == (frame.elements if frame.encoding in (DELTA, COMPACT) else 0), "a view does not tile the tensor")
    if frame.encoding == PROJECTED:
        sides = frame.elements // frame.columns, frame.columns, frame.norm
        require(parts == [frame.depth * side for side in sides], "views of a projected tensor")
    return tensor


def parse_extent(fields):
    kind, name, size = fields.u8(), fields.text(), fields.varint()
    if kind > PART:
        raise Unsupported(f"extent of kind {kind}")
    if kind == LITERAL:
        require(size <= 64, "a long literal")
        return Extent(kind, name, size, fields.bytes(size), None, 0)
    return Extent(kind, name, size, b"", fields.tensor_key(), fields.varint() if kind == PART else 0)


def parse_file(data):
    version, fields = unpacked(data)
    file = SimpleNamespace(kind=fields.u8(), bytes=fields.varint())
    if file.kind > 1:
        raise Unsupported(f"file of kind {file.kind}")
    file.extents = fields.several(lambda: parse_extent(fields), 4)
    fields.end()
    require(sum(extent.bytes for extent in file.extents) == file.bytes, "a file's bytes")
    require((version == 2) == any(extent.kind == PART for extent in file.extents), "the version of a file's record")
    return file


def parse_model_file(fields, version):
    file = SimpleNamespace(path=fields.path(4096), sha256=fields.bytes(32), bytes=fields.varint(),
                           mode=fields.varint(), published_ns=0)
    require(file.mode & ~0o555 == 0, "a file's mode")
    if version < 4:
        file.mtime_ns = fields.number("q")
    else:
        seconds, nanoseconds = fields.number("q"), fields.number("I")
        require(nanoseconds < 10**9, "a file's time")
        file.mtime_ns, file.published_ns = seconds * 10**9 + nanoseconds, fields.number("q")
    file.group = fields.varint() if version > 1 else 0
    return file


def parse_model(data):
    version, fields = fields_of(data, 4)
    model = SimpleNamespace(id=fields.varint(), name=fields.path(1024), fidelity=fields.u8(),
                            created_ns=fields.number("q"), push=fields.varint(), bytes=fields.varint(),
                            added_bytes=fields.varint(), base=fields.varint())
    model.files = fields.several(lambda: parse_model_file(fields, version), 43)
    model.owner = fields.varint() if version > 1 else 0
    # How much was lost, by which measure, and how it was made.
    flags, model.drift_kind, model.drift, model.method = 0, 0, 0.0, ""
    if version > 2:
        flags, model.drift_kind, model.drift = fields.u8(), fields.u8(), fields.number("d")
        model.method = fields.text().decode()
    model.allow_compact, model.derived = bool(flags & 1), bool(flags & 2)
    fields.end()
    paths = [file.path.encode() for file in model.files]
    require(paths == sorted(set(paths)), "a model's paths are not in order")
    require(model.bytes == sum(file.bytes for file in model.files), "a model's bytes")
    require(model.fidelity <= (version > 2) and flags < 4 and model.drift_kind < 3, "a model's fidelity or flags")
    require(model.base or not model.derived, "a derived model without a source")
    return model


def parse_catalog(data):
    _, fields = fields_of(data, 1)
    form = fields.varint()
    if form != 1:
        raise Unsupported(f"format version {form}")
    catalog = SimpleNamespace(features=[text.decode() for text in fields.several(fields.text)])
    catalog.next_model, catalog.next_push, catalog.models = fields.varint(), fields.varint(), fields.varint()
    catalog.digest = fields.number("Q")
    fields.end()
    if not FEATURES.issuperset(catalog.features):
        raise Unsupported(f"features {catalog.features}")
    return catalog
