#!/usr/bin/env python3
"""Converts a PyTorch checkpoint (the zip format of torch.save) to safetensors, without torch and without running its
pickle: only dictionaries, lists, numbers, strings and tensors are understood, everything else becomes a placeholder.

usage: demo_convert.py CHECKPOINT OUTPUT.safetensors
"""
import collections
import json
import math
import os
import pickle
import sys
import zipfile

# torch's storage class -> safetensors' name and bytes of an element
STORAGES = {
    "DoubleStorage": ("F64", 8), "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1),
}
Storage = collections.namedtuple("Storage", "dtype element_bytes key")
Tensor = collections.namedtuple("Tensor", "storage offset shape stride")


class Placeholder:
    """Stands for any object that is not a tensor: built without running anything."""

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        pass


def rebuild_tensor(storage, offset, shape, stride, *_):
    return Tensor(storage, offset, tuple(shape), tuple(stride))


class RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return Placeholder

    def persistent_load(self, pid):
        kind, storage, key = pid[:3]
        if kind != "storage":
            raise ValueError(f"unknown persistent object {kind!r}")
        return Storage(*storage, key)


def tensors_of(value, prefix=""):
    """Tensors below nested dictionaries and lists, by their dotted path."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_of(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from tensors_of(item, f"{prefix}.{i}" if prefix else str(i))


def contiguous(tensor, data):
    """The tensor's elements in row-major order."""
    size, count = tensor.storage.element_bytes, math.prod(tensor.shape)
    rows, expected = [], 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.stride)):
        rows.append(length <= 1 or stride == expected)
        expected *= length
    if all(rows):
        out = data[tensor.offset * size:(tensor.offset + count) * size]
    else:
        starts = [tensor.offset]
        for length, stride in zip(tensor.shape, tensor.stride):
            starts = [start + i * stride for start in starts for i in range(length)]
        out = b"".join(data[start * size:(start + 1) * size] for start in starts)
    if len(out) != count * size:
        raise ValueError(f"a tensor of shape {tensor.shape} reaches beyond its storage")
    return out


def read_checkpoint(path):
    """Yields (name, dtype, shape, bytes)."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: expected one data.pkl as torch.save writes it, found {len(pickles)}")
        folder = pickles[0][:-len("data.pkl")]
        with archive.open(pickles[0]) as stream:
            checkpoint = RestrictedUnpickler(stream).load()
        for name, tensor in tensors_of(checkpoint):
            data = archive.read(f"{folder}data/{tensor.storage.key}")
            yield name, tensor.storage.dtype, tensor.shape, contiguous(tensor, data)


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, dtype, shape, data in tensors:
        if name in header:
            raise ValueError(f"two tensors are called {name}")
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".part", "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, _, _, data in tensors:
            out.write(data)
    os.replace(path + ".part", path)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    tensors = list(read_checkpoint(sys.argv[1]))
    if not tensors:
        sys.exit(f"{sys.argv[1]}: no tensors in it")
    write_safetensors(sys.argv[2], tensors)
    print(f"{len(tensors)} tensors, {sum(len(t[3]) for t in tensors):,} bytes")


if __name__ == "__main__":
    main()
