#!/usr/bin/env python3
"""Runs one case against the built program in a temporary folder and compares what it prints.

usage: run_case.py BINARY CASE [--print]      exit code 77: the case needs something that is not here

A case is a transcript:
    # a comment
    #requires fuse                   skip without /dev/fuse and fusermount3
    $ modelstore show nothing        a command of one bash session ("> " continues it)
    modelstore: {{.*}}nothing{{.*}}  what it prints, stdout and stderr; {{}} holds a regular expression
    [3]                              its exit code, unless 0
The folder is HOME and the current folder; MODELSTORE_STORE is `store` below it, MODELSTORE_SOCKET `socket`. tools/ is on the PATH.
"""
import difflib
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
TIMEOUT_S = 240


class Step:
    def __init__(self, line, command):
        self.line, self.command, self.expected, self.code = line, command, [], 0


def parse(text):
    steps, requires = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#requires "):
            requires += line.split()[1:]
        elif line.startswith("#") or not line and not steps:
            continue
        elif line.startswith("$ "):
            steps.append(Step(number, line[2:]))
        elif line.startswith("> ") and steps and not steps[-1].expected:
            steps[-1].command += "\n" + line[2:]
        elif code := re.fullmatch(r"\[(\d+)\]", line):
            steps[-1].code = int(code[1])
        else:
            steps[-1].expected.append(line)
    for step in steps:
        while step.expected and not step.expected[-1]:
            step.expected.pop()
    return steps, requires


def missing(requirement):
    if requirement == "fuse":
        return not (os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3"))
    if requirement == "ordinary-user":
        return os.geteuid() == 0
    raise SystemExit(f"unknown requirement {requirement!r}")


def matches(expected, line):
    pattern = "".join(f"(?:{part})" if i % 2 else re.escape(part)
                      for i, part in enumerate(re.split(r"\{\{(.*?)\}\}(?!\})", expected)))
    return re.fullmatch(pattern, line) is not None


def run(steps, binary, folder):
    """Returns [(output lines, exit code)] of the steps, fewer when the session ended early."""
    mark = secrets.token_hex(8)
    # Ends every line of output before the mark, so that a missing line end cannot hide it.
    script = "".join(f"{step.command}\nprintf '\\n%s %d\\n' {mark} $?\n" for step in steps)
    (folder / "session.sh").write_text(script)
    home = folder / "home"
    home.mkdir()
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "modelstore").symlink_to(binary.resolve())
    tools = pathlib.Path(__file__).resolve().parent / "tools"
    environment = {
        "PATH": f"{bin_folder}:{tools}:{os.environ['PATH']}", "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C.UTF-8",
        "MODELSTORE_STORE": str(home / "store"), "MODELSTORE_SOCKET": str(home / "socket"), "PYTHONDONTWRITEBYTECODE": "1", "TERM": "xterm"}
    process = subprocess.Popen(["bash", str(folder / "session.sh")], cwd=home, env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        output += f"\nrun_case: still running after {TIMEOUT_S} s\n".encode()
    text = output.decode("utf-8", "backslashreplace").replace(str(home), "HOME")
    results = []
    parts = re.split(rf"\n{mark} (\d+)\n", text)
    for printed, code in zip(parts[0::2], parts[1::2]):
        results.append(([line.rstrip() for line in printed.split("\n")], int(code)))
    if parts[-1].strip():
        results.append((parts[-1].split("\n"), None))
    return results


def compare(step, lines, code):
    while lines and not lines[-1]:
        lines.pop()
    good = len(lines) == len(step.expected) and all(map(matches, step.expected, lines)) and code == step.code
    if good:
        return []
    # Lines that match differ in letters only where a pattern stands.
    shown = [e if i < len(lines) and not matches(e, lines[i]) or i >= len(lines) else lines[i]
             for i, e in enumerate(step.expected)]
    report = [f"line {step.line}: $ {step.command}"]
    report += list(difflib.unified_diff(shown + [f"[{step.code}]"], lines + [f"[{code}]"], "expected", "printed",
                                        lineterm="", n=100))
    return report


def mounts_below(folder):
    """Also dead ones, which only the mount table still shows."""
    points = [line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{folder}/")]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    binary, case = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    steps, requires = parse(case.read_text())
    if lacking := [r for r in requires if missing(r)]:
        print(f"skipped: needs {', '.join(lacking)}")
        return SKIPPED
    folder = pathlib.Path(tempfile.mkdtemp(prefix="modelstore-cli."))
    try:
        results = run(steps, binary, folder)
    finally:
        for mount in mounts_below(folder):
            subprocess.run(["fusermount3", "-u", "-z", mount], check=False)
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    if "--print" in sys.argv:
        for step, (lines, code) in zip(steps, results):
            print(f"$ {step.command}", *lines, *([f"[{code}]"] if code else []), sep="\n")
        return 0
    failures = [line for step, (lines, code) in zip(steps, results) for line in compare(step, lines, code)]
    if len(results) < len(steps):
        failures.append(f"the session ended before line {steps[len(results)].line}")
    print("\n".join(failures) or f"{len(steps)} commands, all as expected")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
