"""Loads safetensors files with torch: one path a line on stdin, one line {seconds, cpu_s, bytes, tensors} for each.

Run by compare.py with the peers' Python. Loading is what `load_state_dict` makes of a file: every tensor is read from
the mapped file and copied to memory of its own.
"""
import gc
import json
import sys
import time

import torch
from safetensors.torch import load_file

# The first load of a process pays for torch itself.
torch.zeros(1 << 20).clone()
print("ready", flush=True)
for line in sys.stdin:
    start, cpu = time.monotonic(), time.process_time()
    mapped = load_file(line.rstrip("\n"))
    loaded = {name: tensor.clone() for name, tensor in mapped.items()}
    seconds, used = time.monotonic() - start, time.process_time() - cpu
    size = sum(tensor.nbytes for tensor in loaded.values())
    print(json.dumps({"seconds": seconds, "cpu_s": used, "bytes": size, "tensors": len(loaded)}), flush=True)
    del mapped, loaded
    gc.collect()
