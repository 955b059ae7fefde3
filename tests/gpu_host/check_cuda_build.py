#!/usr/bin/env python3
"""Builds the CUDA plug-in as `cmake --preset cuda` does and checks what nvcc made of it: no kernel spills registers or
uses a stack, on any architecture; the library loads where there is no driver, and speaks the program's version alone.

    check_cuda_build.py SOURCE_FOLDER MODELSTORE_PROGRAM

Exits 77 (skipped) without nvcc 12.8 or later.
"""
import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
KERNELS = 17  # DeviceKernel


def find_nvcc():
    folders = [os.path.join(os.environ["CUDA_PATH"], "bin")] if "CUDA_PATH" in os.environ else []
    path = os.pathsep.join(folders + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    nvcc = shutil.which("nvcc", path=path)
    if nvcc is None:
        print("skipped: no nvcc on PATH or in /usr/local/cuda/bin; the CUDA plug-in is not built")
        sys.exit(SKIPPED)
    release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    if (int(release[1]), int(release[2])) < (12, 8):
        print(f"skipped: nvcc {release[1]}.{release[2]} is older than 12.8")
        sys.exit(SKIPPED)


def check_resources(log):
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    architectures = len(set(re.findall(r"for 'sm_(\d+)'", log)))
    assert architectures >= 7, f"{architectures} architectures, expected 7 or more"
    assert len(used) == KERNELS * architectures, f"{len(used)} kernels, expected {KERNELS} for each architecture"
    bad = [properties for properties in used if set(properties) != {"0"}]
    assert not bad, f"{len(bad)} kernels use a stack or spill registers: (stack, stores, loads) {bad}"
    registers = list(map(int, re.findall(r"Used (\d+) registers", log)))
    print(f"{len(used)} kernels on {architectures} architectures: no spills, at most {max(registers)} registers")


def check_loading(library, program):
    api = ctypes.CDLL(str(library)).modelstore_device_api
    api.restype, api.argtypes = ctypes.c_void_p, [ctypes.c_uint32]
    known = [version for version in range(100) if api(version)]
    assert len(known) == 1, f"the plug-in knows the versions {known}"
    found = json.loads(subprocess.check_output([program, "doctor", "--json", "--plugin", library], text=True))["gpu"]
    assert found["devices"] or found["reason"].startswith("no GPU"), found
    print("loaded:", found["reason"] or [device["name"] for device in found["devices"]])


def main():
    source, program = map(pathlib.Path, sys.argv[1:])
    find_nvcc()
    with tempfile.TemporaryDirectory(prefix="modelstore-cuda-test.") as folder:
        subprocess.run(["cmake", "-S", source, "-B", folder, "-G", "Ninja", "-DMODELSTORE_CUDA=ON", "-DBUILD_TESTING=OFF",
                        "-DMODELSTORE_CUDA_FLAGS=--resource-usage"], check=True, stdout=subprocess.DEVNULL)
        built = subprocess.run(["cmake", "--build", folder, "--target", "modelstore_cuda"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if built.returncode != 0:
            print(built.stdout)
            sys.exit(1)
        check_resources(built.stdout)
        check_loading(pathlib.Path(folder) / "lib" / "libmodelstore_cuda.so", program)


if __name__ == "__main__":
    main()
