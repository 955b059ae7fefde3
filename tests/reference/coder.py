"""Blocks of coder B. Many streams are decoded side by side: one numpy operation does a step of all their lanes."""
from types import SimpleNamespace

import numpy as np

from libraries import require
from records import BF16, DELTA, DTYPE_BYTES, E4M3, E5M2, F16, F32, F64, PATTERNS

LANES = 32
START = 1 << 16
BATCH_ELEMENTS = 16 << 20  # of the streams that are decoded side by side
EXPONENT_SHIFT = {E4M3: 3, E5M2: 2, F16: 10, BF16: 7, F32: 23, F64: 52}
EXPONENT_MASK = {E4M3: 15, E5M2: 31, F16: 31, BF16: 255, F32: 255, F64: 2047}


def slots_of_context(symbols):
    """For each of its 1,024 slots: the symbol's freq, raw_bits and base, and slot - start. A context without symbols is
    the null context, which gives 0 and leaves a state as it is."""
    symbols = symbols or [(0, 1024)]
    freqs = [freq for _, freq in symbols]
    bases = [sum(1 << bits for bits, _ in symbols[:i]) % 2**64 for i in range(len(symbols))]
    starts = np.cumsum(freqs) - freqs
    raw_bits = np.array([bits for bits, _ in symbols], np.uint32)
    columns = [np.array(freqs, np.uint32), raw_bits, np.array(bases, np.uint64), starts.astype(np.uint32)]
    freq, raw_bits, base, start = (np.repeat(column, freqs) for column in columns)
    return freq, raw_bits, base, np.arange(1024, dtype=np.uint32) - start


def lanes_of(elements, groups):
    """Elements as rows of 32 lanes: even elements of a group in lanes 0 to 15, odd ones in 16 to 31. Elements that do
    not exist are 0."""
    padded = np.zeros(groups * LANES, elements.dtype)
    padded[:len(elements)] = elements
    return padded.reshape(groups, 16, 2).transpose(0, 2, 1).reshape(groups, LANES)


def decode_streams(streams, contexts, value_bytes):
    """Sets the `values` of streams from their `data` and `slots`: of each element the first slot of its context."""
    table = [np.concatenate(column) for column in zip(*map(slots_of_context, contexts))]
    streams = sorted(streams, key=lambda stream: -len(stream.slots))
    while streams:
        sizes = np.cumsum([len(stream.slots) for stream in streams])
        count = max(1, np.searchsorted(sizes, BATCH_ELEMENTS))
        decode_batch(streams[:count], table, value_bytes)
        streams = streams[count:]


def decode_batch(streams, table, value_bytes):
    """Streams from the longest to the shortest, so that those with a group of number g are the first `active[g]`."""
    table_freq, table_bits, table_base, table_step = table
    groups = [-(-len(stream.slots) // LANES) for stream in streams]
    active = np.searchsorted(-np.array(groups), -np.arange(groups[0]), "left")
    # The rows of group g of all streams lie together, from row first[g] on. Lanes without an element have slot 0, the
    # null context's.
    first = np.concatenate([[0], np.cumsum(active)])
    slots = np.zeros((first[-1], LANES), np.int32)
    for i, stream in enumerate(streams):
        slots[first[:groups[i]] + i] = lanes_of(stream.slots, groups[i])
        require(len(stream.data) >= 4 * LANES and len(stream.data) % 2 == 0, "a stream's states or words are cut short")
    x = np.array([np.frombuffer(stream.data, "<u4", LANES) for stream in streams], np.uint32)
    require((x >= START).all(), "a stream's state")
    words = [np.frombuffer(stream.data, "<u2", -1, 4 * LANES) for stream in streams]
    ends = np.cumsum([len(part) for part in words])
    at = np.concatenate([[0], ends[:-1]])
    words = np.concatenate([*words, [0]]).astype(np.uint32)
    out = np.zeros((first[-1], LANES), PATTERNS[value_bytes])

    def take_bits(states, k):
        """The k lowest bits of each state; then states that are too small take the next words of their stream, in the
        order of the lanes."""
        raw = (states & (np.uint32(1) << k) - np.uint32(1)).astype(out.dtype)
        states >>= k
        small = states < START
        index = np.flatnonzero(small)
        if len(index):
            counts = np.count_nonzero(small, axis=1)
            before = np.cumsum(counts) - counts
            source = np.repeat(at[:len(states)] - before, counts) + np.arange(len(index))
            flat = states.reshape(-1)
            flat[index] = flat[index] << np.uint32(16) | words[np.minimum(source, len(words) - 1)]
            at[:len(states)] += counts
        return raw

    for g, n in enumerate(active):
        rows = slice(first[g], first[g + 1])
        slot = slots[rows] + (x[:n] & np.uint32(1023)).astype(np.int32)
        x[:n] = table_freq[slot] * (x[:n] >> np.uint32(10)) + table_step[slot]
        bits = table_bits[slot]
        done = np.minimum(bits, np.uint32(6))
        raw = take_bits(x[:n], done)
        while (done < bits).any():  # a lane without bits left takes 0 bits, which changes nothing
            k = np.minimum(bits - done, np.uint32(16))
            raw |= np.where(k > 0, take_bits(x[:n], k) << done.astype(out.dtype), out.dtype.type(0))
            done += k
        out[rows] = table_base[slot].astype(out.dtype) + raw
    require((x == START).all() and (at == ends).all(), "a stream's end: it is damaged, or its base is another one")
    for i, stream in enumerate(streams):
        lanes = out[first[:groups[i]] + i]
        stream.values = lanes.reshape(-1, 2, 16).transpose(0, 2, 1).reshape(-1)[:len(stream.slots)]


def one_and_top(x):
    """1 and the number of the top bit, of the type of x."""
    return x.dtype.type(1), x.dtype.type(8 * x.dtype.itemsize - 1)


def ordered(x):
    one, top = one_and_top(x)
    return np.where(x >> top, ~x, x ^ one << top)


def pattern_of_delta(v, prediction):
    one, top = one_and_top(v)
    x = ordered(prediction) + (v >> one ^ -(v & one))
    return np.where(x >> top, x ^ one << top, ~x)


def pattern_of_self(v, low_bit):
    one, top = one_and_top(v)
    if low_bit:
        return v & ~(one << top | one) | v >> top | (v & one) << top
    return v >> one | (v & one) << top


def decode_blocks(jobs):
    """Decodes the blocks of several tensors: jobs are (frame, list of the blocks' bytes, prediction or None); gives
    their contents as arrays of coded patterns. Blocks that are raw are taken as they are."""
    results, sizes = [], {}
    for frame, blocks, prediction in jobs:
        size = DTYPE_BYTES[frame.coded_dtype]
        results.append(np.zeros(frame.elements, PATTERNS[size]))
        same = sizes.setdefault(size, SimpleNamespace(contexts=[[]], parts=[]))  # context 0 is the null context
        known = np.zeros(16, np.int32)
        known[:len(frame.contexts)] = 1024 * (len(same.contexts) + np.arange(len(frame.contexts)))
        same.contexts += frame.contexts
        for i, data in enumerate(blocks):
            part = slice(i * frame.block_elements, min((i + 1) * frame.block_elements, frame.elements))
            out, guess = results[-1][part], prediction[part] if frame.encoding == DELTA else None
            raw_bytes = len(out) * DTYPE_BYTES[frame.dtype]
            require(len(data) <= raw_bytes, "a block is longer than its elements")
            if len(data) == raw_bytes:
                raw = np.frombuffer(data, PATTERNS[DTYPE_BYTES[frame.dtype]])
                out[:] = raw if frame.coded_dtype == frame.dtype else raw >> np.uint32(16)
            else:
                same.parts.append((frame, out, guess, streams_of(frame, data, known, len(out), guess)))
    for size, same in sizes.items():
        decode_streams([stream for part in same.parts for stream in part[3]], same.contexts, size)
        for frame, out, guess, streams in same.parts:
            v = np.concatenate([stream.values for stream in streams])
            out[:] = pattern_of_delta(v, guess) if frame.encoding == DELTA else pattern_of_self(v, frame.low_bit)
    return results


def streams_of(frame, data, known, count, guess):
    """The streams of a block of so many elements; `known` has the first slot of each context."""
    classes = np.zeros(count, np.int32)
    if frame.encoding == DELTA:
        shift, mask = guess.dtype.type(EXPONENT_SHIFT[frame.coded_dtype]), EXPONENT_MASK[frame.coded_dtype]
        classes = np.clip((guess >> shift).astype(np.int32) % (mask + 1) - frame.exponent_low, 0, 15)
    elif len(frame.contexts) > 1:
        chunks = -(-count // 512)
        class_map, data = data[:-(-chunks // 4)], data[-(-chunks // 4):]
        pairs = (np.frombuffer(class_map, np.uint8)[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1)
        require(len(pairs) >= chunks and not pairs[chunks:].any(), "a class map")
        classes = np.repeat(pairs[:chunks], 512)[:count]
    slots = known[classes]
    if count < 8192:
        return [SimpleNamespace(data=data, slots=slots)]
    end, half = 4 + int.from_bytes(data[:4], "little"), -(-(count // 2) // 512) * 512
    require(end <= len(data), "a block ends within its first stream")
    return [SimpleNamespace(data=data[4:end], slots=slots[:half]), SimpleNamespace(data=data[end:], slots=slots[half:])]
