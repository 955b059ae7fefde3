#!/usr/bin/env python3
"""Writes moments for the model of make_model.py: inputs of which a few count ten times as much as the others.

usage: make_moments.py FILE [--columns N]
"""
import json
import pathlib
import struct
import sys

columns = int(sys.argv[3]) if "--columns" in sys.argv else 256
h = [0.0] * (columns * columns)
for i in range(columns):
    h[i * columns + i] = 10.0 if i < 8 else 1.0
data = struct.pack(f"<{len(h)}f", *h)
header = json.dumps({"layers.0.weight": {"dtype": "F32", "shape": [columns, columns], "data_offsets": [0, len(data)]}})
header = header.encode() + b" " * (-len(header) % 8)
pathlib.Path(sys.argv[1]).write_bytes(len(header).to_bytes(8, "little") + header + data)
