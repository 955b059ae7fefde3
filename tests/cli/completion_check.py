#!/usr/bin/env python3
"""Presses TAB in a real shell where models have hostile names: what stands on the command line afterwards is the name,
and nothing of it was run. Checks too that every flag of the program is offered.

usage: completion_check.py MODELSTORE COMPLETION SHELL      SHELL is bash, zsh or fish; exits 77 where it is missing

A stand-in for the program answers `--quiet ls` with the names and notes everything else that it is called with.
"""
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time

TIMEOUT_S = 60
RAN = "ran"  # the file that a name makes when it is run

# Each begins with two letters of its own, but for those that are only dangerous at their front.
NAMES = [
    f"aa$(touch {RAN})", f"bb`touch {RAN}`", f"cc;touch {RAN}", f"dd|touch {RAN}", f"ee&touch {RAN}", f"ff>{RAN}",
    "gg with blank", "hh*", "ii'quote", 'jj"quote', "kk\\back", "ll{a,b}", "mm~", "nn!!", "oo#hash", "pp[a-z]", "qq?",
    "rr$HOME", f"ss$((1+1))", "tt%s", "uu:7b", "vv=x", "ww@x", "xx^y", "yy,z", "team/zz é", f"ab<(touch {RAN})",
    f"ac(touch {RAN})", "ad  two", "ae\\$(x)", "af''", "ag-h", 'ah"$(x)', "ai*/x", "aj:8b:q",
]
FRONTS = [f"$(touch {RAN})", f"`touch {RAN}`", "~root", "{c,d}", "*", "#", "!x", "=ls", "%1", "'", '"', "\\", f";touch {RAN}", "a"]
PROGRAM = """#!/usr/bin/env python3
import os, sys
if sys.argv[-2:] == ["--quiet", "ls"]:
    print(open(os.environ["NAMES"]).read(), end="")
else:
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(repr(sys.argv[1:]) + "\\n")
"""


class Shell:
    """An interactive shell on a terminal of its own, in `folder`."""

    def __init__(self, argv, folder):
        self.calls, self.names = folder / "calls", folder / "names"
        env = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8",
               "NAMES": str(self.names), "CALLS": str(self.calls), "HISTFILE": "", "fish_features": "no-query-term"}
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(argv[0], argv, env)
        self.seen = b""

    def read(self, seconds):
        ready, _, _ = select.select([self.terminal], [], [], seconds)
        if not ready:
            return False
        try:
            got = os.read(self.terminal, 65536)
        except OSError:
            got = b""
        self.seen += got
        return bool(got)

    def wait_for(self, condition, what):
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            self.read(0.05)
            if time.monotonic() > end:
                raise AssertionError(f"no {what}; the terminal says:\n{self.seen.decode(errors='replace')}")

    def press(self, keys):
        os.write(self.terminal, keys.encode())

    def ready(self):
        """Waits until a command has run, so that the shell is at its prompt."""
        before = self.count()
        self.press("modelstore ready\r")
        self.wait_for(lambda: self.count() > before, "prompt")

    def count(self):
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def complete(self, typed):
        """What modelstore is called with when `typed`, TAB and ENTER are pressed."""
        before = self.count()
        self.seen = b""
        self.press(typed + "\t")
        # The shell reads the keys in their order: what TAB inserts is there before the line ends.
        self.press("\r")
        self.wait_for(lambda: self.count() > before, f"call after {typed!r}")
        return eval(self.calls.read_text().splitlines()[-1])  # repr of a list of strings, by PROGRAM

    def close(self):
        os.close(self.terminal)
        end = time.monotonic() + 5
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(self.pid, 9)
                os.waitpid(self.pid, 0)
                return
            time.sleep(0.01)


def start(shell, completion, folder):
    if shell == "bash":
        (folder / "rc").write_text(f"source {completion}\nPS1='> '\nbind 'set enable-bracketed-paste off'\nset +o history\n")
        return Shell(["bash", "--noprofile", "--rcfile", str(folder / "rc"), "-i"], folder)
    if shell == "zsh":
        (folder / ".zshrc").write_text(f"fpath=({completion.parent} $fpath)\nautoload -U compinit\ncompinit -u -D\n"
                                       "PS1='> '\nunset zle_bracketed_paste\nsetopt nobeep\n")
        return Shell(["zsh", "-i"], folder)
    config = folder / ".config/fish"
    (config / "completions").mkdir(parents=True)
    (folder / ".local/share/fish/generated_completions").mkdir(parents=True)  # else it makes some from manual pages
    shutil.copy(completion, config / "completions/modelstore.fish")
    (config / "config.fish").write_text("set -g fish_greeting\nfunction fish_prompt; echo '> '; end\n"
                                        "set -g fish_autosuggestion_enabled 0\n")
    return Shell(["fish", "-i"], folder)


def opened(shell, text):
    """`text` as one types it after an opening quote, which stays open."""
    return "'" + (text.replace("'", "'\\''") if shell != "fish" else text.replace("\\", "\\\\").replace("'", "\\'"))


def check_names(shell, session, folder):
    session.ready()
    session.names.write_text("".join(name + "\n" for name in NAMES))
    for name in NAMES:
        front = name[:6] if name.startswith("team/") else name[:2]
        for typed in (f"modelstore show {front}", f"modelstore rm {opened(shell, front)}"):
            called = session.complete(typed)
            if called[1:] != [name]:
                yield f"{typed!r} TAB: expected {name!r}, called with {called}"
    for name in ("uu:7b", "vv=x", "aj:8b:q"):  # readline takes these apart
        called = session.complete(f"modelstore show {name[:-1]}")
        if called[1:] != [name]:
            yield f"{name[:-1]!r} TAB: called with {called}"
    for name in FRONTS:
        if shell == "fish" and name.startswith("~"):
            continue  # not offered: fish would not quote it
        session.names.write_text(name + "\n")
        session.complete("modelstore push x --base ")  # several are offered; nothing may run
        for typed in ["modelstore show "] + [f"modelstore show {opened(shell, name[:1])}"] * (len(name) > 1):
            called = session.complete(typed)
            if called[1:] != [name]:
                yield f"{typed!r} TAB: expected {name!r}, called with {called}"
    if (folder / RAN).exists():
        yield "a model's name was run"


def check_flags(binary, completion):
    text = completion.read_text()
    offered = set(re.findall(r"--([a-z][a-z-]+)|-l ([a-z][a-z-]+)", text))
    offered = {a or b for a, b in offered}
    top = subprocess.run([binary, "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
    commands = re.findall(r"^  ([a-z]+) {2,}", top, re.M)
    assert len(commands) > 10, top
    for command in [[]] + [[c] for c in commands]:
        said = subprocess.run([binary, *command, "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
        for flag in re.findall(r"--([a-z][a-z-]+)", "\n".join(re.findall(r"^  -.*$", said, re.M))):
            if flag not in offered and re.search(rf"^  (-\w,)?--{flag}\b", said, re.M):
                yield f"--{flag} of {' '.join(command) or 'all commands'} is not offered"
    yield from (f"the command {command} is not offered" for command in commands if not re.search(rf"\b{command}\b", text))


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    binary, completion, shell = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), sys.argv[3]
    findings = list(check_flags(binary, completion))
    if not shutil.which(shell):
        print(f"skipped: {shell} is missing (Debian package {shell})", *findings, sep="\n")
        sys.exit(1 if findings else 77)
    with tempfile.TemporaryDirectory(prefix="modelstore-completion.") as name:
        folder = pathlib.Path(name).resolve()
        (folder / "bin").mkdir()
        (folder / "bin/modelstore").write_text(PROGRAM)
        (folder / "bin/modelstore").chmod(0o755)
        (folder / "names").write_text("")
        session = start(shell, completion, folder)
        try:
            findings += check_names(shell, session, folder)
        finally:
            session.close()
    print("\n".join(findings) or "ok")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
