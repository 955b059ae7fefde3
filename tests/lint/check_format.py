#!/usr/bin/env python3
"""Every .h and .cc is as clang-format 14 would write it. Exits 77 (skipped) where clang-format 14 is not installed."""
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ["codec", "catalog", "fuse", "daemon", "cli", "tests"]


def clang_format_14():
    for name in ("clang-format-14", "clang-format"):
        tool = shutil.which(name)
        if tool and " 14." in subprocess.run([tool, "--version"], capture_output=True, text=True).stdout:
            return tool
    return None


def main():
    tool = clang_format_14()
    if tool is None:
        print("skipped: clang-format 14 is not installed (apt-get install clang-format-14)")
        return 77
    files = [str(p) for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (".h", ".cc")]
    return 1 if subprocess.run([tool, "--dry-run", "-Werror", *files]).returncode else 0


if __name__ == "__main__":
    sys.exit(main())
