#!/usr/bin/env python3
"""What a running modelstored tells: its metrics over a Unix socket and a loopback port, its access log.

usage: observe_check.py MODELSTORED MODELSTORE      exits 77 (skipped) where nothing can be mounted
"""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

LIMIT_SECONDS = 60
CONTENT = bytes(range(256)) * 4096


def wait_for(what, condition):
    """The first true value of condition()."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {LIMIT_SECONDS} seconds")


def scrape(address):
    """Series -> value; every line must be of Prometheus' text format."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(LIMIT_SECONDS)
        stream.connect(address)
        stream.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: stream.recv(1 << 16), b"")).decode()
    head, body = answer.split("\r\n\r\n", 1)
    assert head.startswith("HTTP/1.1 200"), head
    values, kinds = {}, {}
    for line in body.splitlines():
        if found := re.fullmatch(r"# TYPE (\w+) (counter|gauge)", line):
            kinds[found[1]] = found[2]
        elif not line.startswith("# HELP "):
            found = re.fullmatch(r'((modelstore_\w+)(?:\{(?:\w+="[^"]*",?)*\})?) (\S+)', line)
            assert found and found[2] in kinds, line
            assert (kinds[found[2]] == "counter") == found[2].endswith("_total"), line
            values[found[1]] = float(found[3])
    return values


class Daemon:
    def __init__(self, program, work, settings):
        self.log = work / "log"
        config = work / "config.toml"
        base = {"store": str(work / "store"), "mount": str(work / "mount"), "socket": str(work / "socket"),
                "log_format": "json"}
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in (base | settings).items()))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([program, "--config", str(config)], stderr=log)
        try:
            wait_for("the daemon is ready", lambda: self.lines("ready") or self.process.poll() is not None)
            assert self.process.poll() is None, self.log.read_text()
        except BaseException:
            self.stop()
            raise

    def lines(self, message):
        whole = self.log.read_text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in found if line["message"] == message]

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def check_metrics_and_log(daemon, address, modelstore, work):
    def client(*arguments, code=0):
        done = subprocess.run([modelstore, "--socket", str(work / "socket"), *arguments], capture_output=True, text=True)
        assert done.returncode == code, (arguments, done)

    before = scrape(address)
    assert before["modelstore_models"] == 0 and before["modelstore_mount_open_files"] == 0, before
    client("push", str(work / "model"))
    client("show", "nothing", code=3)
    with open(work / "mount/model/weights.bin", "rb") as stream:
        assert stream.read() == CONTENT
        assert scrape(address)["modelstore_mount_open_files"] == 1
    after = wait_for("the file is released",
                     lambda: (now := scrape(address))["modelstore_mount_open_files"] == 0 and now)
    assert after["modelstore_models"] == 1, after
    assert after["modelstore_mount_read_bytes_total"] == len(CONTENT), after
    assert after["modelstore_pushed_bytes_total"] == len(CONTENT), after
    assert 0 < after["modelstore_stored_bytes_total"] < after["modelstore_store_disk_bytes"], after
    assert after['modelstore_requests_total{request="push",code="ok"}'] == 1, after
    assert after['modelstore_requests_total{request="show",code="not_found"}'] == 1, after
    assert 0 < after["modelstore_memory_resident_bytes"] < after["modelstore_memory_budget_bytes"], after

    assert not daemon.lines("access"), "the access log is off until it is asked for"
    daemon.process.send_signal(signal.SIGUSR1)
    wait_for("SIGUSR1 was heard", lambda: daemon.lines("access log"))
    subprocess.run(["cat", str(work / "mount/model/weights.bin")], check=True, stdout=subprocess.DEVNULL)
    line = wait_for("a line of the access log", lambda: daemon.lines("access"))[0]
    expected = {"model": "model", "path": "weights.bin", "process": "cat", "uid": str(os.getuid()),
                "bytes": str(len(CONTENT)), "errors": "0"}
    assert expected.items() <= line.items(), line
    daemon.process.send_signal(signal.SIGUSR1)
    wait_for("SIGUSR1 was heard again", lambda: len(daemon.lines("access log")) == 2)
    lines = len(daemon.lines("access"))
    with open(work / "mount/model/weights.bin", "rb") as stream:
        stream.read(1)
        assert scrape(address)["modelstore_mount_open_files"] == 1
    wait_for("the file is released", lambda: scrape(address)["modelstore_mount_open_files"] == 0)
    assert len(daemon.lines("access")) == lines, "off again"


def main():
    modelstored, modelstore = sys.argv[1:]
    if not os.path.exists("/dev/fuse") or (os.geteuid() != 0 and not shutil.which("fusermount3")):
        print("skipped: nothing can be mounted here")
        sys.exit(77)
    with contextlib.ExitStack() as stack:
        work = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelstore-observe.")))
        (work / "model").mkdir()
        (work / "model/weights.bin").write_bytes(CONTENT)

        daemon = Daemon(modelstored, work, {"metrics": str(work / "metrics.sock")})
        stack.callback(daemon.stop)
        check_metrics_and_log(daemon, str(work / "metrics.sock"), modelstore, work)
        assert daemon.stop() == 0, daemon.log.read_text()
        assert not (work / "metrics.sock").exists()

        # From the start, and on a port of the daemon's choice.
        daemon = Daemon(modelstored, work, {"metrics": "127.0.0.1:0", "access_log": True})
        stack.callback(daemon.stop)
        port = int(daemon.lines("metrics")[0]["address"].rpartition(":")[2])
        assert scrape(("127.0.0.1", port))["modelstore_models"] == 1
        (work / "mount/model/weights.bin").read_bytes()
        wait_for("a line of the access log", lambda: daemon.lines("access"))
        assert daemon.stop() == 0, daemon.log.read_text()

        try:
            Daemon(modelstored, work, {"metrics": "0.0.0.0:0"})
        except AssertionError as refused:
            assert "0.0.0.0:0" in str(refused), refused
        else:
            raise AssertionError("metrics for the whole network were accepted")
    print("ok")


if __name__ == "__main__":
    main()
