"""The programs and packages that modelstore is compared with, and where they lie.

They come from PyPI into a virtual environment below the cache folder (compare.py --fetch-peers); zstd comes from the
system. What is not there is named with what would bring it, and its rows are left out.
"""
import os
import pathlib
import shutil
import subprocess
import sys

import processes

FETCH = "tests/bench/compare.py --fetch-peers"
# torch's own index has builds without CUDA, a tenth of the size; PyPI's build serves as well.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "modelstore-bench"


class Peers:
    def __init__(self, venv):
        self.bin = pathlib.Path(venv) / "bin"
        self.python = str(self.bin / "python")
        self.lmz = str(self.bin / "lmz")
        self.zstd = shutil.which("zstd")

    def _missing_module(self, name, modules):
        if not os.access(self.python, os.X_OK):
            return f"{name}: not fetched ({FETCH})"
        imports = "; ".join(f"import {module}" for module in modules)
        done = subprocess.run([self.python, "-W", "ignore", "-c", imports], capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return f"{name}: {why} ({FETCH})"
        return None

    def missing_lmz(self):
        if not os.access(self.lmz, os.X_OK):
            return f"lmz: not fetched ({FETCH})"
        return self._missing_module("lmz", ["lmz"])

    def missing_zipnn(self):
        return self._missing_module("zipnn", ["zipnn"])

    def missing_torch(self):
        return self._missing_module("torch and safetensors", ["torch", "safetensors.torch"])

    def missing_zstd(self):
        return None if self.zstd else "zstd: not installed (apt-get install zstd)"

    def versions(self):
        """Name -> version of what is there."""
        found = {}
        if os.access(self.python, os.X_OK):
            code = ("import importlib.metadata as m\nfor n in ('lmzip', 'zipnn', 'torch', 'safetensors'):\n"
                    " try: print(n, m.version(n))\n except m.PackageNotFoundError: pass")
            done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
            found.update(line.split() for line in done.stdout.splitlines())
        if self.zstd:
            text = subprocess.run([self.zstd, "--version"], capture_output=True, text=True, check=False).stdout
            found["zstd"] = next((word.strip("v,") for word in text.split() if word.startswith("v")), "unknown")
        return found


def fetch(venv):
    """Makes the virtual environment and installs the peers; what is installed already stays."""
    pip = [str(pathlib.Path(venv) / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet"]

    def install(*arguments, errors=None):
        return subprocess.run([*pip, *arguments], stderr=errors, check=False).returncode == 0

    print(f"fetching into {venv}", file=sys.stderr)
    if subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False).returncode:
        raise processes.Failure(f"{venv}: no virtual environment (apt-get install python3-venv)")
    if not install("lmzip[zstd]", "numpy", "safetensors"):
        raise processes.Failure("lmzip could not be installed from PyPI; see above")
    if not install("--retries", "0", "--timeout", "15", "--index-url", TORCH_INDEX, "torch", errors=subprocess.DEVNULL):
        print(f"torch: nothing from {TORCH_INDEX}; taking PyPI's build, which is a few GB", file=sys.stderr)
        if not install("torch"):
            raise processes.Failure("torch could not be installed; see above (lmz is there)")
    if not install("zipnn"):
        raise processes.Failure("zipnn could not be installed from PyPI; see above (lmz and torch are there)")
    subprocess.run([str(pathlib.Path(venv) / "bin" / "lmz"), "doctor"], stdout=sys.stderr, check=False)
