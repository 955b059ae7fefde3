"""Starting, measuring and ending the processes of the benchmark. Standard library only.

What is started here is a process group of its own, so that Ctrl-C reaches the driver alone, and is ended by the driver
on every way out; when the driver is killed, the kernel interrupts it.
"""
import ctypes
import json
import os
import select
import signal
import subprocess
import tempfile
import time

STOP_SECONDS = 20
PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """A contender or a part of the benchmark cannot go on; the text says what and what helps."""


def _end_with_driver():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def start(command, **arguments):
    return subprocess.Popen(command, process_group=0, preexec_fn=_end_with_driver, **arguments)


def tail(stream):
    stream.seek(0)
    lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def stop_on_signals(say):
    """The first signal unwinds everything that is running; further ones wait for that."""
    def stop(number, _):
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        say("stopping")
        raise SystemExit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, stop)


def all_of(stream):
    stream.seek(0)
    return " ".join(stream.read().decode(errors="replace").split())[:1000] or "no message"


def run(command, timeout=3600):
    """Runs a command to its end: {wall_s, cpu_s, rss_bytes} of it, and its standard output."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        try:
            process = start(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            raise Failure(f"{command[0]}: {error.strerror}") from None
        try:
            # wait4 gives the usage of this one child.
            _, status, usage = wait4(process.pid, began + timeout)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        wall = time.monotonic() - began
        if process.returncode != 0:
            said = tail(err) if err.seek(0, os.SEEK_END) else all_of(out)  # with --json an error goes to standard output
            raise Failure(f"`{' '.join(map(str, command))}` ended with {process.returncode}: {said}")
        out.seek(0)
        return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime,
                "rss_bytes": usage.ru_maxrss * 1024}, out.read().decode()


def wait4(pid, deadline):
    """os.wait4 with a deadline. Sleeps on the process, so that the wall time of a short command is not rounded."""
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
            raise Failure(f"process {pid} did not end in time")
    finally:
        os.close(descriptor)
    return os.wait4(pid, 0)


def cpu_seconds(pid):
    """CPU seconds that a running process has used, to the nanosecond (its CPU-time clock, see clock_getcpuclockid)."""
    return time.clock_gettime(((~pid) << 3) | 2)


def peak_rss_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as stream:
        for line in stream:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise Failure(f"process {pid} has ended")


class Server:
    """A process that serves a mount, from `with` to the end of the block."""

    def __init__(self, command, mountpoint, expected, label, timeout=60, environment=None):
        self.command, self.mountpoint, self.expected, self.label = command, mountpoint, expected, label
        self.timeout = timeout
        self.environment = {**os.environ, **(environment or {})}

    def __enter__(self):
        os.makedirs(self.mountpoint, exist_ok=True)
        self.log = tempfile.TemporaryFile()
        try:
            self.process = start(self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                 env=self.environment)
        except OSError as error:
            self.log.close()
            raise Failure(f"{self.label}: {self.command[0]}: {error.strerror}") from None
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        self.pid = self.process.pid
        return self

    def wait_until_ready(self):
        deadline = time.monotonic() + self.timeout
        path = os.path.join(self.mountpoint, self.expected)
        while not (os.path.ismount(self.mountpoint) and os.path.exists(path)):
            if self.process.poll() is not None:
                raise Failure(f"{self.label}: the server ended with {self.process.returncode}: {tail(self.log)}")
            if time.monotonic() > deadline:
                raise Failure(f"{self.label}: no {self.expected} in the mount after {self.timeout} s: {tail(self.log)}")
            time.sleep(0.005)

    def __exit__(self, *_):
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                try:
                    self.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(self.process.pid, signal.SIGKILL)
                    self.process.wait()
            if os.path.ismount(self.mountpoint):
                subprocess.run(["fusermount3", "-u", "-z", self.mountpoint], check=False)
        finally:
            self.log.close()


def read_with(reader, access, path, readers, count, server=None):
    """One run of bench_reader; with a server, its CPU seconds meanwhile and its peak memory are added."""
    before = cpu_seconds(server.pid) if server else 0
    result = json.loads(run([reader, access, path, str(readers), str(count)], timeout=900)[1])
    result["client_cpu_s"] = result.pop("cpu_s")
    result["client_rss_bytes"] = result.pop("rss_bytes")
    result["server_cpu_s"] = cpu_seconds(server.pid) - before if server else 0
    result["server_rss_bytes"] = peak_rss_bytes(server.pid) if server else 0
    return result


def touch(path, distance):
    """Reads one page of every `distance` bytes and nothing ahead: a server decodes all blocks and, since no reader got
    all of one, keeps them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(0, os.fstat(descriptor).st_size, distance):
            os.pread(descriptor, 4096, at)
    finally:
        os.close(descriptor)


def files_of(path):
    """A file alone, or all files below a folder."""
    if not os.path.isdir(path):
        return [path]
    return [os.path.join(folder, name) for folder, _, files in os.walk(path) for name in files]


def drop_pages(path):
    """Takes a file or folder out of the page cache: written back first, since dirty pages stay."""
    for name in files_of(path):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def fill_pages(path):
    """Reads a file or folder, so that it lies in the page cache."""
    for name in files_of(path):
        with open(name, "rb", buffering=0) as stream:
            buffer = bytearray(1 << 20)
            while stream.readinto(buffer):
                pass
