#!/usr/bin/env python3
"""Writes a folder with a small model: model.safetensors (two BF16 tensors) and config.json. The same arguments give the
same bytes.

usage: make_model.py DIR SEED [--finetune SEED2]      --finetune: the weights of SEED, changed a little by SEED2
"""
import json
import pathlib
import random
import struct
import sys

ROWS, COLUMNS = 512, 256


def bf16(values):
    packed = struct.pack(f"<{len(values)}f", *values)
    return b"".join(packed[i + 2:i + 4] for i in range(0, len(packed), 4))


def main():
    folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    source = random.Random(seed)
    weights = [source.gauss(0, 0.02) for _ in range(ROWS * COLUMNS)]
    if "--finetune" in sys.argv:
        change = random.Random(int(sys.argv[4]))
        weights = [w * (1 + 0.002 * (change.random() - 0.5)) for w in weights]
    tensors = {"layers.0.weight": ([ROWS, COLUMNS], bf16(weights)), "norm.weight": ([COLUMNS], bf16([1.0] * COLUMNS))}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    data = b"".join(d for _, d in tensors.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps({"seed": seed}) + "\n")


main()
