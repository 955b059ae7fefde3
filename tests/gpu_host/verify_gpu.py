#!/usr/bin/env python3
"""On a machine with GPUs: every one decodes the awkward blocks to the CPU's bytes, also under compute-sanitizer where that
is installed.

    verify_gpu.py MODELSTORE_PROGRAM

Exits 77 (skipped), saying why, without a plug-in or a GPU.
"""
import json
import os
import shutil
import subprocess
import sys

SKIPPED = 77


def main():
    program = sys.argv[1]
    found = json.loads(subprocess.check_output([program, "doctor", "--json"], text=True))["gpu"]
    if not found["devices"]:
        print("skipped:", found["reason"])
        return SKIPPED
    print(subprocess.run([program, "doctor", "--gpu-verify"], check=True, text=True, stdout=subprocess.PIPE).stdout)
    sanitizer = shutil.which("compute-sanitizer", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")
    if sanitizer is None:
        print("compute-sanitizer is not installed: not run under it")
        return 0
    for tool in ("memcheck", "racecheck"):
        subprocess.run([sanitizer, "--tool", tool, "--error-exitcode", "1", program, "doctor", "--gpu-verify"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
