#!/usr/bin/env python3
"""Compares mounted models with their sources: the SHA-256 of every file, and every tensor loaded through mmap.

usage: demo_check.py MOUNT [NAME SOURCE]...      exits 1 when anything differs
"""
import hashlib
import json
import mmap
import pathlib
import sys
import time


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def files_of(source):
    """Path within the model -> file, as modelstore stores them."""
    if source.is_file():
        return {source.name: source}
    return {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}


def tensors(mapped):
    """Yields (name, bytes) of a mapped safetensors file; nothing when it is malformed (it is stored as it is)."""
    if len(mapped) < 8:
        return
    start = 8 + int.from_bytes(mapped[:8], "little")
    try:
        header = json.loads(mapped[8:start])
        spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, KeyError, TypeError):
        return
    for name, (begin, end) in spans.items():
        yield name, mapped[start + begin:start + end]


def same_tensors(mounted, source):
    """Loads both files' tensors; returns how many there are, or raises on the first difference."""
    with open(mounted, "rb") as a, open(source, "rb") as b:
        with mmap.mmap(a.fileno(), 0, prot=mmap.PROT_READ) as left, mmap.mmap(b.fileno(), 0, prot=mmap.PROT_READ) as right:
            count = 0
            for (name, loaded), (other, expected) in zip(tensors(left), tensors(right), strict=True):
                if name != other or loaded != expected:
                    raise ValueError(f"{mounted}: tensor {name} differs")
                count += 1
            return count


def check(mount, name, source):
    files = files_of(source)
    found = {p.relative_to(mount / name).as_posix() for p in (mount / name).rglob("*") if p.is_file()}
    if found != set(files):
        raise ValueError(f"{name}: the mount shows other files: {sorted(found ^ set(files))}")
    start, count, size = time.monotonic(), 0, 0
    for path, original in files.items():
        mounted = mount / name / path
        size += original.stat().st_size
        if path.endswith(".safetensors") and original.stat().st_size:
            count += same_tensors(mounted, original)
        if sha256(mounted) != sha256(original):
            raise ValueError(f"{name}/{path}: SHA-256 differs from {original}")
    seconds = time.monotonic() - start
    print(f"{name}: {len(files)} file{'s' * (len(files) != 1)}, {size / 1e6:.1f} MB, {count} tensors "
          f"loaded: identical to {source} ({seconds:.1f} s)")


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    mount = pathlib.Path(sys.argv[1])
    try:
        for name, source in zip(sys.argv[2::2], sys.argv[3::2]):
            check(mount, name, pathlib.Path(source))
    except (OSError, ValueError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
