#!/usr/bin/env python3
"""check_vector_objects.py finds a weak symbol where there is one, and none where there is none."""
import json
import pathlib
import subprocess
import sys
import tempfile

CHECK = pathlib.Path(__file__).with_name("check_vector_objects.py")
WITH = "inline int Twice(int x) { return 2 * x; }\nint Four(int x) { return Twice(Twice(x)); }\n"
WITHOUT = "static int Twice(int x) { return 2 * x; }\nint Four(int x) { return Twice(Twice(x)); }\n"


def check(folder, source, flags, compiler, nm):
    (folder / "a.cc").write_text(source)
    command = [compiler, *flags, "-O0", "-c", "a.cc", "-o", "a.o"]
    subprocess.run(command, cwd=folder, check=True)
    commands = [{"directory": str(folder), "command": " ".join(command), "file": "a.cc", "output": "a.o"}]
    (folder / "compile_commands.json").write_text(json.dumps(commands))
    return subprocess.run([sys.executable, CHECK, str(folder), nm], capture_output=True).returncode


def main():
    compiler, nm = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        expected = {(WITH, "-mavx2"): 1, (WITHOUT, "-mavx2"): 0, (WITH, "-g"): 77}
        for (source, flag), code in expected.items():
            got = check(folder, source, [flag], compiler, nm)
            if got != code:
                print(f"{flag}: expected {code}, got {got}, for\n{source}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
