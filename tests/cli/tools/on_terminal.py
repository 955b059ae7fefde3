#!/usr/bin/env python3
"""Runs a command on a pseudo-terminal, types INPUT, and prints what appeared (carriage returns removed, escapes visible).

usage: on_terminal.py INPUT COMMAND...      exits with the command's code
"""
import os
import pty
import sys

pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
if sys.argv[1]:
    os.write(terminal, sys.argv[1].encode() + b"\n")
output = b""
while True:
    try:
        part = os.read(terminal, 65536)
    except OSError:  # EIO: the last one has closed it
        break
    if not part:
        break
    output += part
_, status = os.waitpid(pid, 0)
sys.stdout.write(output.decode().replace("\r", "").replace("\x1b", "ESC"))
sys.exit(os.waitstatus_to_exitcode(status))
