#!/usr/bin/env python3
"""An object compiled for a newer CPU (-mavx2, …) defines no weak symbol.

The linker keeps one copy of each weak symbol (inline functions, templates) of all objects. Were that the copy of such an
object, every CPU would run it, also those that lack the instructions.

  check_vector_objects.py BUILD_FOLDER NM

Exits 77 (skipped) where no such object is built yet.
"""
import json
import pathlib
import re
import subprocess
import sys

FOR_NEWER_CPUS = re.compile(r"\s-m(avx|bmi|fma|lzcnt|popcnt|sse[34]|arch=)")
WEAK = "uvwVW"


def weak_symbols(nm, path):
    out = subprocess.run([nm, "--demangle", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    lines = (re.match(r"[0-9a-f]+ (\S) (.+)", line) for line in out.stdout.splitlines())
    return [line[2] for line in lines if line and line[1] in WEAK]


def vector_objects(build):
    for entry in json.loads((build / "compile_commands.json").read_text()):
        command = entry.get("command") or " ".join(entry["arguments"])
        if not FOR_NEWER_CPUS.search(command):
            continue
        output = entry.get("output") or re.search(r"\s-o (\S+)", command)[1]
        yield pathlib.Path(entry["directory"]) / output


def main():
    build, nm = pathlib.Path(sys.argv[1]), sys.argv[2]
    built = [path for path in vector_objects(build) if path.exists()]
    if not built:
        print("skipped: nothing that is compiled for newer CPUs is built")
        return 77
    errors = 0
    for path in built:
        for symbol in weak_symbols(nm, path):
            print(f"{path.relative_to(build)}: weak symbol {symbol}")
            errors += 1
    if errors:
        print("the linker may keep these copies for all CPUs: make them static, put them into an unnamed namespace, or "
              "let the compiler inline them")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
