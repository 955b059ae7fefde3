#!/usr/bin/env python3
"""Writes a folder with a checkpoint of LAYERS layers: model.safetensors and config.json. Its moments, of influences alone
(the earlier layers do most), go to FILE.

usage: make_layers.py DIR LAYERS [--moments FILE]
"""
import json
import pathlib
import random
import struct
import sys

ROWS, COLUMNS = 64, 64


def write(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def main():
    folder, layers = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    source = random.Random(1)
    folder.mkdir(parents=True)

    def tensor():
        return "F32", [ROWS, COLUMNS], struct.pack(f"<{ROWS * COLUMNS}f",
                                                   *(source.gauss(0, 0.02) for _ in range(ROWS * COLUMNS)))

    tensors = {"model.embed_tokens.weight": tensor()}
    tensors |= {f"model.layers.{layer}.mlp.weight": tensor() for layer in range(layers)}
    write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}) + "\n")
    if "--moments" in sys.argv:
        write(pathlib.Path(sys.argv[4]), {f"model.layers.{layer}.influence": ("F32", [], struct.pack("<f", 1 / (1 + layer)))
                                          for layer in range(layers)})


main()
