"""Packs a base and a finetune with zipnn: each file alone, a finetune's file of equal length as zipnn's delta.

usage (with the peers' Python): zipnn_pack.py BASE FINETUNE OUTPUT    prints {wall_s, cpu_s, base_bytes, finetune_bytes}

The seconds count reading, compressing and writing, not the imports.
"""
import collections
import json
import os
import pathlib
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import zipnn  # noqa: E402

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def dtype_of(data):
    """zipnn packs a file as one type: that of most bytes in a safetensors file."""
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        sizes = collections.Counter()
        for name, entry in json.loads(data[8:end]).items():
            if name != "__metadata__":
                sizes[entry["dtype"]] += entry["data_offsets"][1] - entry["data_offsets"][0]
        return DTYPES.get(sizes.most_common(1)[0][0], "float32")
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return "float32"


def pack(path, base, output):
    data = path.read_bytes()
    if base is not None and base.is_file() and base.stat().st_size == len(data):
        coder = zipnn.ZipNN(bytearray_dtype=dtype_of(data), delta_compressed_type="byte")
        packed = coder.compress(data, delta_second_data=base.read_bytes())
    else:
        packed = zipnn.ZipNN(bytearray_dtype=dtype_of(data)).compress(data)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(packed)
    return len(packed)


def files_of(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]


def main():
    base, finetune, output = map(pathlib.Path, sys.argv[1:])
    start, cpu = time.monotonic(), time.process_time()
    base_bytes = sum(pack(p, None, output / "base" / p.relative_to(base)) for p in files_of(base))
    finetune_bytes = sum(pack(p, base / p.relative_to(finetune), output / "finetune" / p.relative_to(finetune))
                         for p in files_of(finetune))
    print(json.dumps({"wall_s": time.monotonic() - start, "cpu_s": time.process_time() - cpu,
                      "base_bytes": base_bytes, "finetune_bytes": finetune_bytes}))
    sys.stdout.flush()
    os._exit(0)  # torch's teardown is nobody's time


main()
