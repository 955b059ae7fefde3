#!/usr/bin/env python3
"""A reader of modelstore's store folders that was written from docs/format.md alone and shares no code with modelstore.

    read_store.py STORE                 lists the models
    read_store.py STORE --out FOLDER    rebuilds every file of every model below FOLDER, after checking all hashes
"""
import argparse
import collections
import contextlib
import fcntl
import hashlib
import itertools
import pathlib
import struct
import sys

sys.dont_write_bytecode = True

import numpy as np  # noqa: E402

import arithmetic  # noqa: E402
import coder  # noqa: E402
import records  # noqa: E402
from libraries import Corrupt, Database, Unsupported, hash128, hash64, require, unpack_zstd  # noqa: E402
from records import BF16, DTYPE_BYTES, F16, FLOATS, PATTERNS, U16  # noqa: E402

FAMILIES = {"default", "meta", "models", "files", "tensors", "blocks", "edges", "sketches"}
CACHE_BYTES = 1 << 30
PIECE_BYTES = 256 << 20  # of tensors of a file that are decoded together


class Store:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.lock = open(folder / "lock", "rb") if (folder / "lock").exists() else None
        if self.lock:
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self.db = Database(folder / "db")
        self.decoded = collections.OrderedDict()  # bytes of tensors by key, those last used at the end
        self.known = {}  # tensor records by key
        self.read_catalog()

    def close(self):
        self.db.close()
        if self.lock:
            self.lock.close()

    def read_catalog(self):
        if not set(self.db.families) <= FAMILIES:
            raise Unsupported(f"families {set(self.db.families) - FAMILIES}")
        record = self.db.get("meta", b"catalog")
        self.models, digest = {}, 0
        for name, value in self.db.items("models"):
            model = records.parse_model(value)
            require(model.name.encode() == name, "a model's name is not its key")
            self.models[model.name] = model
            digest ^= hash64(value)
        if record or self.models:
            self.catalog = records.parse_catalog(record or b"")
            require((len(self.models), digest) == (self.catalog.models, self.catalog.digest),
                    "the models are not those that the catalog record counts")

    def needed(self, family, key):
        value = self.db.get(family, key)
        if value is None:
            raise Corrupt(f"no record {key.hex()} in {family}")
        return value

    def tensor(self, key):
        if key not in self.known:
            self.known[key] = records.parse_tensor(self.needed("tensors", key))
        return self.known[key]

    def block(self, push, index):
        """The coded bytes of a block, checked."""
        value = self.needed("blocks", struct.pack(">QI", push, index))
        coded = value[8:]
        require(len(value) >= 8 and hash64(coded) == int.from_bytes(value[:8], "little"), "checksum of a block")
        return coded

    def rebuild(self, sha256, write=lambda content: None):
        """Passes the content of a file to `write`, piece by piece, and compares it with the file's hash."""
        hasher = hashlib.sha256()
        extents = records.parse_file(self.needed("files", sha256)).extents
        ends = itertools.accumulate(extent.bytes for extent in extents)
        for _, piece in itertools.groupby(zip(ends, extents), lambda pair: pair[0] // PIECE_BYTES):
            piece = [extent for _, extent in piece]
            contents = self.contents({extent.tensor for extent in piece if extent.tensor})
            for extent in piece:
                content = extent.literal
                if extent.tensor:
                    whole = contents[extent.tensor]
                    content = memoryview(whole)[extent.offset:extent.offset + extent.bytes]
                    require(extent.kind != records.WHOLE or extent.bytes == len(whole), "an extent's bytes")
                require(len(content) == extent.bytes, "an extent beyond its tensor's end")
                hasher.update(content)
                write(content)
        require(hasher.digest() == sha256, "a file's SHA-256")

    def contents(self, keys):
        """The bytes of tensors by their keys. All that have no base are decoded first, together, then those of depth 1,
        and so on."""
        wanted, found = {}, set(keys)
        while found:
            key = found.pop()
            if key in self.decoded:
                self.decoded.move_to_end(key)
            elif key not in wanted:
                tensor = wanted[key] = self.tensor(key)
                require(all(self.tensor(base).depth < tensor.depth for base in tensor.bases), "a base's depth")
                found |= tensor.bases
        for depth in sorted({tensor.depth for tensor in wanted.values()}):
            ready = [key for key, tensor in wanted.items() if tensor.depth == depth]
            for key, content in zip(ready, self.decode([wanted[key] for key in ready])):
                self.check(key, wanted[key], content)
                self.decoded[key] = content
        result = {key: self.decoded[key] for key in keys}
        total = sum(map(len, self.decoded.values()))
        while total > CACHE_BYTES:
            total -= len(self.decoded.popitem(last=False)[1])
        return result

    def check(self, key, tensor, content):
        """A tensor's key is the hash of its type, shape and content."""
        head = struct.pack(f"<BI{len(tensor.dimensions)}Q", tensor.dtype, len(tensor.dimensions), *tensor.dimensions)
        require(struct.pack(">QQ", *hash128(head + content)) == key[:16], f"hash of tensor {key.hex()}")

    def decode(self, tensors):
        """The bytes of tensors whose bases have been decoded."""
        coded = [tensor for tensor in tensors if tensor.frame.encoding in (records.SELF, records.DELTA)]
        guesses = [self.seen(tensor.view, tensor.frame.coded_dtype) for tensor in coded]
        patterns = iter(coder.decode_blocks([(t.frame, self.blocks(t), guess) for t, guess in zip(coded, guesses)]))
        for tensor in tensors:
            frame, dtype = tensor.frame, tensor.dtype
            if frame.encoding in (records.RAW, records.ZSTD):
                yield self.plain(tensor)
            elif frame.encoding == records.COMPACT:
                parts = [self.seen(view, kind) for view, kind in zip(tensor.parts, (U16, U16, BF16))]
                yield arithmetic.compact_tensor(frame, self.seen(tensor.view, dtype), *parts).tobytes()
            elif frame.encoding == records.PROJECTED:
                parts = [self.seen(view, kind) for view, kind in zip(tensor.parts, (dtype, F16, dtype))]
                yield arithmetic.projected_tensor(frame, *parts).tobytes()
            else:
                content = next(patterns)
                yield (content if frame.coded_dtype == dtype else content.astype(np.uint32) << np.uint32(16)).tobytes()

    def blocks(self, tensor):
        blocks = [self.block(tensor.push, tensor.first_block + i) for i in range(tensor.blocks)]
        require(sum(len(block) + 8 for block in blocks) == tensor.coded_bytes, "a tensor's coded bytes")
        return blocks

    def plain(self, tensor):
        """A tensor that is raw or packed by zstd."""
        frame, content = tensor.frame, []
        for i, block in enumerate(self.blocks(tensor)):
            elements = min(frame.block_elements, frame.elements - i * frame.block_elements)
            size = elements * DTYPE_BYTES[frame.dtype]
            packed = frame.encoding == records.ZSTD and len(block) < size
            content.append(unpack_zstd(block, size) if packed else block)
            require(len(content[-1]) == size, "a block's bytes")
        return b"".join(content)

    def seen(self, view, dtype):
        """What a view sees, as patterns of dtype."""
        parts = []
        for segment in view:
            part = np.zeros(segment.elements, PATTERNS[DTYPE_BYTES[dtype]])
            if segment.base:
                base = self.tensor(segment.base).dtype
                elements = np.frombuffer(self.decoded[segment.base], PATTERNS[DTYPE_BYTES[base]])
                part = elements[segment.first:segment.first + segment.elements]
                require(len(part) == segment.elements, "a view beyond its base's end")
                require(base == dtype or {base, dtype} <= FLOATS, "a base that is not of that type")
                part = arithmetic.converted(part, base, dtype)
            parts.append(part)
        return np.concatenate(parts) if parts else np.zeros(0, PATTERNS[DTYPE_BYTES[dtype]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--out", help="where the files are written; a new folder")
    arguments = parser.parse_args()
    with contextlib.closing(Store(arguments.store)) as store:
        for name, model in store.models.items():
            print(f"{name}: {len(model.files)} files, {model.bytes} bytes" + ", compact" * model.fidelity)
            for file in model.files:
                if arguments.out:
                    path = pathlib.Path(arguments.out) / name / file.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "xb") as out:
                        store.rebuild(file.sha256, out.write)
                print(f"  {file.sha256.hex()}  {file.path}")


if __name__ == "__main__":
    main()
