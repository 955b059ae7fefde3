#!/usr/bin/env python3
"""Clang finds no guarded data that is touched without its mutex (codec/support/mutex.h), whatever compiler builds.

usage: check_thread_safety.py BUILD_FOLDER      prints what clang says; exits 1 when anything

Reads BUILD_FOLDER/compile_commands.json and lets clang parse, without generating code, the product's sources that use
a mutex or whose own header does. Exits 77 (skipped) where there is no clang.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ["codec", "catalog", "gpu", "fuse", "daemon", "cli"]
USES_MUTEX = re.compile(
    r"\b(?:Mutex|SharedMutex|MutexLock|ReaderLock|WriterLock|CondVar|MS_\w*(?:GUARDED|REQUIRES)\w*)\b")
WARNINGS = ["-Wno-everything", "-Wthread-safety", "-Wthread-safety-beta", "-Werror"]
# Flags that say what the code means; others concern the code that is generated, or another compiler.
KEPT = ("-I", "-D", "-U", "-std=", "-stdlib=")
KEPT_WITH_VALUE = ("-I", "-D", "-U", "-isystem", "-iquote")
# Parsed once for all files: these headers are half of the time.
COMMON_HEADERS = ["algorithm", "array", "atomic", "chrono", "condition_variable", "deque", "functional", "map",
                  "memory", "mutex", "optional", "set", "shared_mutex", "span", "string", "string_view", "thread",
                  "unordered_map", "vector"]


def find_clang():
    for name in ["clang++"] + [f"clang++-{version}" for version in range(30, 13, -1)]:
        if shutil.which(name):
            return name
    return None


def flags_of(entry):
    """The flags of a compile command that clang needs to understand the file as the compiler did."""
    words = shlex.split(entry["command"]) if "command" in entry else list(entry["arguments"])
    kept = []
    for i, word in enumerate(words):
        if word in KEPT_WITH_VALUE:
            kept += words[i:i + 2]
        elif word.startswith(KEPT):
            kept.append(word)
    return kept


def uses_mutex(file):
    return any(USES_MUTEX.search(path.read_text(encoding="utf-8"))
               for path in (file, file.with_suffix(".h")) if path.is_file())


def files_to_check(build, root):
    """(file, its folder for relative paths, its flags), each file once."""
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        file = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if not file.is_relative_to(root) or file.relative_to(root).parts[0] not in FOLDERS or not file.is_file():
            continue
        if uses_mutex(file):
            found[file] = (entry["directory"], flags_of(entry))
    return [(file, *rest) for file, rest in sorted(found.items())]


class Checker:
    """Runs clang; `folder` keeps the common headers as clang reads them again fast, for each -std= that is in use."""

    def __init__(self, clang, folder):
        self.clang = clang
        self.folder = pathlib.Path(folder)
        self.header = self.folder / "common.h"
        self.header.write_text("".join(f"#include <{name}>\n" for name in COMMON_HEADERS))

    def precompiled(self, flags):
        standard = next(flag for flag in flags if flag.startswith("-std="))
        compiled = self.folder / f"common{standard}.pch"
        if not compiled.exists():
            subprocess.run([self.clang, "-x", "c++-header", standard, str(self.header), "-o", str(compiled)],
                           check=True)
        return ["-include-pch", str(compiled)]

    def findings_of(self, item):
        file, directory, flags = item
        done = subprocess.run([self.clang, *flags, *self.precompiled(flags), "-fsyntax-only", *WARNINGS, str(file)],
                              cwd=directory, capture_output=True, text=True)
        return done.stderr or f"{file}: {self.clang} failed\n" if done.returncode else ""

    def check(self, build, root):
        """(how many files were checked, what clang says about those that it finds fault with)"""
        files = files_to_check(build, root)
        for _, _, flags in files:
            self.precompiled(flags)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return len(files), [findings for findings in pool.map(self.findings_of, files) if findings]


def main():
    clang = find_clang()
    if clang is None:
        print("skipped: clang is not installed (apt-get install clang)")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        count, findings = Checker(clang, folder).check(pathlib.Path(sys.argv[1]).resolve(), ROOT)
    print("".join(findings) + f"{clang}: {count} files checked, {len(findings)} with findings")
    if count == 0:
        print("no source of the product uses a mutex: is this its build folder?")
    return 1 if findings or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
