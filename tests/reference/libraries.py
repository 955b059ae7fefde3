"""RocksDB, zstd and XXH3 by their shared libraries' C interfaces.

They are on every machine that builds modelstore, so the reader needs nothing but numpy besides. (The module rocksdict
opens these stores too, but it comes from PyPI alone and leaves a file of its own in the database's folder; ldb starts a
process for each value.) RocksDB writes a log of its messages beside the database even when it only reads, so it is
given a folder of links to the store's files, and the store itself is never written.
"""
import ctypes
import ctypes.util
import os
import tempfile


class Corrupt(Exception):
    """The store contradicts itself or docs/format.md."""


class Unsupported(Exception):
    """The store uses something that docs/format.md, as this reader knows it, does not have."""


def require(condition, what):
    if not condition:
        raise Corrupt(what)


def library(name):
    found = ctypes.util.find_library(name)
    if not found:
        raise ImportError(f"no shared library {name}")
    return ctypes.CDLL(found)


rocksdb, zstd, xxhash = library("rocksdb"), library("zstd"), library("xxhash")


class Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


def declare(function, result, *arguments):
    function.restype, function.argtypes = result, arguments
    return function


# Python's bytes are passed as pointers to their content.
POINTER, BYTES, SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
xxh3_64 = declare(xxhash.XXH3_64bits, ctypes.c_uint64, BYTES, SIZE)
xxh3_128 = declare(xxhash.XXH3_128bits, Hash128, BYTES, SIZE)
zstd_decompress = declare(zstd.ZSTD_decompress, SIZE, POINTER, SIZE, BYTES, SIZE)
zstd_frame_bytes = declare(zstd.ZSTD_findFrameCompressedSize, SIZE, BYTES, SIZE)


def hash64(data):
    return xxh3_64(data, len(data))


def hash128(data):
    """High word, low word."""
    result = xxh3_128(data, len(data))
    return result.high, result.low


def unpack_zstd(data, size):
    """The content of exactly one zstd frame, which has `size` bytes."""
    require(zstd_frame_bytes(data, len(data)) == len(data), "not one whole zstd frame")
    out = ctypes.create_string_buffer(max(size, 1))
    require(zstd_decompress(out, size, data, len(data)) == size, f"a zstd frame is damaged or has not {size} bytes")
    return out.raw[:size]


class Database:
    """A RocksDB database with its column families, read only."""

    def __init__(self, folder):
        self.links = tempfile.TemporaryDirectory(prefix="modelstore-reference-")
        for entry in os.scandir(folder):
            os.symlink(os.path.realpath(entry), f"{self.links.name}/{entry.name}")
        options = self.call("options_create", POINTER)
        path, count = os.fsencode(self.links.name), SIZE()
        listed = self.checked("list_column_families", ctypes.POINTER(BYTES), options, path, ctypes.byref(count))
        self.families = [listed[i].decode() for i in range(count.value)]
        names = (BYTES * count.value)(*[name.encode() for name in self.families])
        handles = (POINTER * count.value)()
        self.db = self.checked("open_for_read_only_column_families", POINTER, options, path, count.value, names,
                               (POINTER * count.value)(*[options] * count.value), handles, 0)
        self.handles = dict(zip(self.families, map(POINTER, handles)))
        self.read_options = self.call("readoptions_create", POINTER)

    def close(self):
        for handle in self.handles.values():
            self.call("column_family_handle_destroy", None, handle)
        self.call("close", None, self.db)
        self.links.cleanup()

    @staticmethod
    def call(name, result, *arguments):
        function = getattr(rocksdb, "rocksdb_" + name)
        function.restype = result
        value = function(*arguments)
        return POINTER(value) if result is POINTER else value

    def checked(self, name, result, *arguments):
        error = BYTES()
        value = self.call(name, result, *arguments, ctypes.byref(error))
        require(error.value is None, f"RocksDB: {error.value}")
        return value

    def get(self, family, key):
        """The value, or None."""
        size = SIZE()
        value = self.checked("get_cf", POINTER, self.db, self.read_options, self.handles[family], key, SIZE(len(key)),
                             ctypes.byref(size))
        if not value:
            return None
        content = ctypes.string_at(value, size.value)
        self.call("free", None, value)
        return content

    def items(self, family):
        """All pairs of key and value, in the order of the keys."""
        iterator = self.call("create_iterator_cf", POINTER, self.db, self.read_options, self.handles[family])
        found, size = [], SIZE()
        self.call("iter_seek_to_first", None, iterator)
        while self.call("iter_valid", ctypes.c_ubyte, iterator):
            key = ctypes.string_at(self.call("iter_key", POINTER, iterator, ctypes.byref(size)), size.value)
            value = ctypes.string_at(self.call("iter_value", POINTER, iterator, ctypes.byref(size)), size.value)
            found.append((key, value))
            self.call("iter_next", None, iterator)
        self.checked("iter_get_error", None, iterator)
        self.call("iter_destroy", None, iterator)
        return found
