"""Conversions between the floating-point dtypes, and tensors that are computed: compact and projected ones."""
import functools
import itertools

import numpy as np

from libraries import require
from records import BF16, DTYPE_BYTES, E4M3, E5M2, F16, F32, F64, PATTERNS

MANTISSA = {E4M3: 3, E5M2: 2, F16: 10, BF16: 7, F32: 23, F64: 52}
LEAST_EXPONENT = {E4M3: -6, E5M2: -14, F16: -14, BF16: -126, F32: -126, F64: -1022}
INFINITY = {E4M3: 0x7f, E5M2: 0x7c, F16: 0x7c00, BF16: 0x7f80, F32: 0x7f800000, F64: 0x7ff0000000000000}
TOP_BIT = [8 * size - 1 for size in DTYPE_BYTES]
CHUNK = 1 << 18  # elements whose temporary arrays stay in a core's cache


def in_chunks(function, elements, kind):
    out = np.empty(elements, kind)
    for at in range(0, elements, CHUNK):
        out[at:at + CHUNK] = function(slice(at, min(at + CHUNK, elements)))
    return out


def values_of(x, dtype):
    """Patterns as floats: F64 as float64, all others exactly as float32."""
    if dtype in (F32, F64):
        return x.view(np.float32 if dtype == F32 else np.float64).copy()
    if dtype == BF16:
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in (F16, E5M2):
        halves = x if dtype == F16 else x.astype(np.uint16) << np.uint16(8)
        with np.errstate(invalid="ignore"):
            return halves.view(np.float16).astype(np.float32)
    e4m3 = np.arange(128)
    fields = np.ldexp(np.where(e4m3 >= 8, 8, 0) + e4m3 % 8, np.maximum(e4m3 >> 3, 1) - 10).astype(np.float32)
    fields[127] = np.nan
    return np.concatenate([fields, -fields])[x]


def rounded(values, dtype, hashes=None):
    """Floats that are no NaN as patterns of dtype. Without hashes to nearest even, overflow to infinity (E4M3: to the
    largest finite value); with them by the dither of compact tensors, overflow to the largest finite value."""
    width, mantissa = (64, 52) if values.dtype == np.float64 else (32, 23)
    one, bits = np.uint64(1), values.view(PATTERNS[width // 8]).astype(np.uint64)
    sign, magnitude = bits >> np.uint64(width - 1), bits & np.uint64((1 << width - 1) - 1)
    field = (magnitude >> np.uint64(mantissa)).astype(np.int64)
    significand = magnitude & np.uint64((1 << mantissa) - 1) | (field > 0).astype(np.uint64) << np.uint64(mantissa)
    exponent = np.maximum(field, 1) - (1 << width - 2 - mantissa) + 1
    drop = mantissa - MANTISSA[dtype] + np.maximum(LEAST_EXPONENT[dtype] - exponent, 0)
    if hashes is None:
        d = np.minimum(drop, mantissa + 3).astype(np.uint64)  # what has more bits too many is less than a half, too
        more = np.where(d > 0, (one << d >> one) - one + (significand >> d & one), np.uint64(0))
    else:
        d = np.minimum(drop, 40).astype(np.uint64)
        more = np.where(drop < 40, hashes.astype(np.uint64) << d >> np.uint64(16), np.uint64(0))
    scaled = np.maximum(exponent - LEAST_EXPONENT[dtype], 0).astype(np.uint64) << np.uint64(MANTISSA[dtype])
    largest = INFINITY[dtype] - (hashes is not None or dtype == E4M3)
    pattern = np.minimum(scaled + (significand + more >> d), np.uint64(largest))
    return (pattern | sign << np.uint64(TOP_BIT[dtype])).astype(PATTERNS[DTYPE_BYTES[dtype]])


def converted(x, source, target):
    """Patterns of dtype source as those of dtype target, as a delta's prediction has them."""
    if source == target:
        return x
    if (source, target) == (BF16, F32):
        return x.astype(np.uint32) << np.uint32(16)
    return in_chunks(lambda part: converted_chunk(x[part], source, target), len(x), PATTERNS[DTYPE_BYTES[target]])


def converted_chunk(x, source, target):
    values = values_of(x, source)
    nan = np.isnan(values)
    values[nan] = 0
    out = rounded(values.astype(np.float64) if target == F64 else values, target)
    if nan.any():
        out[nan] = converted_nan(x[nan], source, target)
    return out


def converted_nan(x, source, target):
    """The quiet NaN of x's sign, which keeps the upper bits of x's mantissa in F64, and in BF16 those of an F32."""
    kind = PATTERNS[DTYPE_BYTES[target]]
    sign = (x >> x.dtype.type(TOP_BIT[source])).astype(kind) << kind(TOP_BIT[target])
    quiet = sign | kind(INFINITY[target] | (1 << MANTISSA[target] - 1 if target != E4M3 else 0))
    payload = x & x.dtype.type((1 << MANTISSA[source]) - 1)
    if target == F64:
        return quiet | payload.astype(kind) << kind(52 - MANTISSA[source])
    if (source, target) == (F32, BF16):
        return quiet | (payload >> x.dtype.type(16)).astype(kind)
    return quiet


@functools.cache
def level_groups(size, limit):
    """All groups of `size` levels in the order of their tokens. The stable sort keeps the order of the levels."""
    groups = np.array(list(itertools.product(range(-limit, limit + 1), repeat=size)), np.int64)
    return groups[np.argsort((groups * groups).sum(axis=1), kind="stable")].astype(np.int8)


class Taker:
    """Takes elements from the front of an array; nothing may be left at the end."""

    def __init__(self, elements):
        self.elements, self.at = elements, 0

    def take(self, count):
        self.at += count
        require(self.at <= len(self.elements), "what a compact tensor consists of is too short")
        return self.elements[self.at - count:self.at]

    def levels(self, size, limit, count):
        tokens, groups = self.take(-(-count // size)), level_groups(size, limit)
        places = (tokens & np.uint16(0x7fff)).astype(np.int64) << 1 | tokens >> np.uint16(15)
        require((places < len(groups)).all(), "a token that stands for no levels")
        levels = groups[places].reshape(-1)
        require(not levels[count:].any(), "padding of levels")
        return levels[:count]


def compact_tensor(frame, prediction, factors, residual, scales):
    """The patterns of a compact tensor from its prediction's, two arrays of tokens and BF16 scales."""
    out = np.empty_like(prediction)
    factors, residual, scales, at = Taker(factors), Taker(residual), Taker(scales), 0
    for segment in frame.segments:
        count = segment.rows * segment.columns
        change = low_rank(segment, factors, scales)
        if segment.residual:
            add_residual(segment, change, residual, scales)
        part = slice(at, at + count)
        out[part] = changed(frame, segment, prediction[part], change.reshape(-1), at)
        at += count
    require(all(taker.at == len(taker.elements) for taker in (factors, residual, scales)), "what is left of the parts")
    return out


def low_rank(segment, factors, scales):
    rows = np.arange(segment.rows)
    if segment.mask:
        rows = np.flatnonzero(np.unpackbits(np.frombuffer(segment.mask, np.uint8), bitorder="little")[:segment.rows])
    rank = segment.rank
    v = factors.levels(2, 127, rank * segment.columns).reshape(rank, segment.columns).astype(np.float32)
    u = factors.levels(2, 127, len(rows) * rank).reshape(len(rows), rank).astype(np.float32)
    scale = values_of(scales.take(rank), BF16)
    change = np.zeros((segment.rows, segment.columns), np.float32)
    for at in range(0, len(rows), 64):  # some rows at a time, which stay in the cache
        some = rows[at:at + 64]
        a = np.zeros((len(some), segment.columns), np.float32)
        for k in range(rank):
            a += (scale[k] * u[at:at + 64, k])[:, None] * v[k]
        change[some] = a
    return change


def add_residual(segment, change, residual, scales):
    count = change.size
    size, limit = (2, 127) if segment.wide else (4, 7)
    q = residual.levels(size, limit, count)
    group = segment.group or count
    step = values_of(scales.take(-(-count // group)), BF16)
    biases = np.array([0, *segment.biases], np.float32) / np.float32(64)
    index = np.flatnonzero(q)
    levels = np.abs(q[index].astype(np.int32))
    amount = (levels.astype(np.float32) - biases[np.minimum(levels, 3)]) * step[index // group]
    flat = change.reshape(-1)
    flat[index] += np.where(q[index] < 0, -amount, amount)


def changed(frame, segment, prediction, change, first):
    """p + a of each element, rounded to the dtype; `first` is the number of the first element in the tensor."""

    def some(part):
        patterns = prediction[part]
        p = values_of(patterns, frame.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            y = p + change[part]
        if frame.dtype == F64:
            result = y.view(np.uint64)
        elif frame.dtype == F32:
            result = np.clip(y, np.finfo(np.float32).min, np.finfo(np.float32).max).view(np.uint32)
        else:
            elements = np.arange(first + part.start, first + part.stop, dtype=np.uint64)
            half = np.full(len(y), 1 << 15, np.uint32)
            result = rounded(y, frame.dtype, half if segment.nearest else dither(elements, frame.seed))
        return np.where(np.isfinite(p), result, patterns)

    return in_chunks(some, len(prediction), prediction.dtype)


def dither(elements, seed):
    """The 16 bits of hash of each element."""
    high = (elements >> np.uint64(32)).astype(np.uint32)
    x = elements.astype(np.uint32) ^ high * np.uint32(0x85ebca6b) ^ np.uint32(seed)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7feb352d)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846ca68b)
    return x >> np.uint32(16)


def projected_tensor(frame, weight, axes, norm):
    """The patterns of W diag(g) R."""
    rows, columns = frame.elements // frame.columns, frame.columns
    r = values_of(axes, F16).reshape(frame.depth, columns)
    g = values_of(norm, frame.dtype) if frame.norm else np.ones(frame.depth, np.float32)
    out = np.empty(frame.elements, weight.dtype)
    block = max(1, CHUNK // 2 // columns)  # rows at a time
    with np.errstate(over="ignore", invalid="ignore"):
        for row in range(0, rows, block):
            part = weight[row * frame.depth:(row + block) * frame.depth]
            w = np.ascontiguousarray((values_of(part, frame.dtype).reshape(-1, frame.depth) * g).T)
            total = np.zeros((w.shape[1], columns), np.float32)
            term = np.empty_like(total)
            for d in range(frame.depth):
                np.multiply(w[d][:, None], r[d], out=term)
                total += term
            patterns = converted(total.reshape(-1).view(np.uint32), F32, frame.dtype)
            out[row * columns:row * columns + total.size] = patterns
    return out
