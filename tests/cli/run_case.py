#!/usr/bin/env python3
"""Runs one case against the built program in a temporary folder and compares what it prints.

usage: run_case.py BINARY CASE [--daemon MODELSTORED] [--print]   exit code 77: the case needs something not here

A case is a transcript:
    # a comment
    #requires fuse                   skip without /dev/fuse and fusermount3
    #door daemon                     not for the other door (store)
    $ modelstore show nothing        a command of one bash session ("> " continues it)
    modelstore: {{.*}}nothing{{.*}}  what it prints, stdout and stderr; {{}} holds a regular expression
    [3]                              its exit code, unless 0
The folder is HOME and the current folder. MODELSTORE_STORE is `store` below it, or with --daemon the session has a daemon
of its own: in the output DAEMON is its folder, with `store`, `mount` and `socket`; in the session $DAEMON is it, too.
tools/ is on the PATH.
"""
import argparse
import contextlib
import difflib
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

SKIPPED = 77
TIMEOUT_S = 240
DAEMON_TIMEOUT_S = 60


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
    if requirement == "faketime":
        return not shutil.which("faketime")
    if requirement == "root":
        return os.geteuid() != 0 or not shutil.which("setpriv")
    if requirement == "user-namespaces":
        return not shutil.which("unshare") or subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode
    raise SystemExit(f"unknown requirement {requirement!r}")


def matches(expected, line):
    pattern = "".join(f"(?:{part})" if i % 2 else re.escape(part)
                      for i, part in enumerate(re.split(r"\{\{(.*?)\}\}(?!\})", expected)))
    return re.fullmatch(pattern, line) is not None


class Daemon:
    """A modelstored with everything of its own below `folder`; started on entering, ended on leaving."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.problem = binary, folder, None

    def __enter__(self):
        self.folder.mkdir()
        config = self.folder / "config.toml"
        config.write_text("memory_budget_bytes = 268435456\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(self.folder / "notify"))
            ready.settimeout(0.2)
            with open(self.folder / "log", "wb") as log:
                self.process = subprocess.Popen(
                    [self.binary, "--config", config, "--store", self.folder / "store", "--mount", self.folder / "mount",
                     "--socket", self.folder / "socket"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env={"PATH": os.environ["PATH"], "HOME": str(self.folder),
                         "NOTIFY_SOCKET": str(self.folder / "notify")})
            for _ in range(DAEMON_TIMEOUT_S * 5):
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in ready.recv(4096):
                        return self
                if self.process.poll() is not None:
                    raise SystemExit(f"modelstored ended with {self.process.returncode}:\n{self.log()}")
        self.__exit__()
        raise SystemExit(f"modelstored was not ready within {DAEMON_TIMEOUT_S} s:\n{self.log()}")

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DAEMON_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code != 0:
            self.problem = f"modelstored ended with {code}:\n{self.log()}"

    def log(self):
        return (self.folder / "log").read_text(errors="replace")


def run(steps, binary, folder, environment):
    """Returns [(output lines, exit code)] of the steps, fewer when the session ended early."""
    mark = secrets.token_hex(8)
    # Ends every line of output before the mark, so that a missing line end cannot hide it.
    script = "".join(f"{step.command}\nprintf '\\n%s %d\\n' {mark} $?\n" for step in steps)
    (folder / "session.sh").write_text(script)
    home, bin_folder = folder / "home", folder / "bin"
    home.mkdir()
    bin_folder.mkdir()
    # A copy: other users may not get to where it was built.
    shutil.copy(binary, bin_folder / "modelstore")
    tools = pathlib.Path(__file__).resolve().parent / "tools"
    environment = {
        "PATH": f"{bin_folder}:{tools}:{os.environ['PATH']}", "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1", "TERM": "xterm"} | environment
    process = subprocess.Popen(["bash", str(folder / "session.sh")], cwd=home, env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        output += f"\nrun_case: still running after {TIMEOUT_S} s\n".encode()
    text = output.decode("utf-8", "backslashreplace").replace(str(home), "HOME").replace(str(folder / "daemon"), "DAEMON")
    results = []
    parts = re.split(rf"\n{mark} (\d+)\n", text)
    for printed, code in zip(parts[0::2], parts[1::2]):
        results.append(([line.rstrip() for line in printed.split("\n")], int(code)))
    if parts[-1].strip():
        results.append((parts[-1].split("\n"), None))
    return results


def run_through(door, steps, binary, daemon_binary, folder):
    """The results and what went wrong with the daemon, or None."""
    home = folder / "home"
    if door == "store":
        return run(steps, binary, folder, {"MODELSTORE_STORE": str(home / "store"), "MODELSTORE_SOCKET": str(home / "socket")}), None
    with Daemon(daemon_binary, folder / "daemon") as daemon:
        results = run(steps, binary, folder, {"MODELSTORE_SOCKET": str(daemon.folder / "socket"), "DAEMON": str(daemon.folder)})
    return results, daemon.problem


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
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("case", type=pathlib.Path)
    parser.add_argument("--daemon", type=pathlib.Path)
    parser.add_argument("--print", action="store_true")
    arguments = parser.parse_args()
    door = "daemon" if arguments.daemon else "store"
    steps, requires = parse(arguments.case.read_text())
    if lacking := [r for r in requires + ["fuse"] * (door == "daemon") if missing(r)]:
        print(f"skipped: needs {', '.join(lacking)}")
        return SKIPPED
    folder = pathlib.Path(tempfile.mkdtemp(prefix="modelstore-cli."))
    folder.chmod(0o755)
    try:
        results, problem = run_through(door, steps, arguments.binary, arguments.daemon, folder)
    finally:
        for mount in mounts_below(folder):
            subprocess.run(["fusermount3", "-u", "-z", mount], check=False)
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.print:
        for step, (lines, code) in zip(steps, results):
            print(f"$ {step.command}", *lines, *([f"[{code}]"] if code else []), sep="\n")
        print(problem or "", end="")
        return 0
    failures = [line for step, (lines, code) in zip(steps, results) for line in compare(step, lines, code)]
    if len(results) < len(steps):
        failures.append(f"the session ended before line {steps[len(results)].line}")
    failures += [problem] if problem else []
    print("\n".join(failures) or f"{len(steps)} commands, all as expected")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
