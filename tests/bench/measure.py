"""The three parts of the benchmark. In each, all contenders take their turn in every round, in another order each time;
a contender that fails is left out from then on and named with its reason."""
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import select
import shutil
import subprocess

import contenders
import processes

Scenario = collections.namedtuple("Scenario", "what access readers")
SCENARIOS = ([Scenario("base", access, 1) for access in ("read", "mmap")] +
             [Scenario("finetune", access, readers) for access in ("read", "mmap") for readers in (1, 4, 16)] +
             [Scenario("finetune", access, 1) for access in ("random-pread", "random-mmap")])
RANDOM_PAGES = 2000
CACHED_REPEATS = 3  # what lies in the page cache takes so little time that one interruption decides: the best of three
TOUCH_BYTES = 16 << 10  # less than a block of modelstore
LOAD_SECONDS = 600
REQUIRED = ("plain", "null", "modelstore")  # without these there is nothing to compare with


def is_sequential(scenario):
    return scenario.access in ("read", "mmap")


class Turns:
    """Contenders that still take part, and what became of the others; both lists are the caller's."""

    def __init__(self, contestants, missing, say):
        self.contestants, self.missing, self.say = contestants, missing, say

    def shuffled(self, seed):
        order = list(self.contestants)
        random.Random(str(seed)).shuffle(order)
        return order

    @contextlib.contextmanager
    def of(self, contestant):
        try:
            yield
        except (processes.Failure, OSError) as error:
            if contestant.key in REQUIRED:
                raise
            self.contestants.remove(contestant)
            named = str(error).startswith(contestant.label)
            self.missing.append(str(error) if named else f"{contestant.label}: {error}")
            self.say(f"left out from here on: {self.missing[-1]}")


def make_all(factories, missing, say):
    made = []
    for label, factory in factories:
        try:
            made.append(factory())
        except processes.Failure as error:
            if label in REQUIRED:
                raise
            missing.append(f"{label}: {error}")
            say(f"left out: {missing[-1]}")
    return made


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_bytes(contestant, models):
    """Every server gives the bytes of the sources; the null server has its own."""
    for role in ("base", "finetune"):
        if contestant.key != "null" and sha256(contestant.path(role)) != sha256(models.path(role)):
            raise processes.Failure(f"{contestant.path(role)}: other bytes than {models.sources[role]}")


def measure_mount(models, contestants, reader, rounds, missing, say):
    """Rows of {server, what, state, access, readers} with a list of measurements, one a round."""
    rows = collections.defaultdict(list)
    turns = Turns(contestants, missing, say)
    for contestant in list(turns.contestants):
        say(f"comparing the bytes of {contestant.label} with the sources")
        with turns.of(contestant), contestant.session():
            check_bytes(contestant, models)

    def take(contestant, scenario, server, state, repeats=1):
        path = contestant.path(scenario.what)
        results = [processes.read_with(reader, scenario.access, path, scenario.readers, RANDOM_PAGES, server)
                   for _ in range(repeats)]
        result = min(results, key=lambda r: r["seconds"])
        if is_sequential(scenario) and result["bytes"] != scenario.readers * os.path.getsize(path):
            raise processes.Failure(f"{path}: {result['bytes']} bytes read by {scenario.readers} reader(s) of "
                                    f"{os.path.getsize(path)} bytes")
        rows[contestant.key, scenario.what, state, scenario.access, scenario.readers].append(result)

    def visit(contestant, scenario):
        sequential = is_sequential(scenario)
        with contestant.session() as server:
            take(contestant, scenario, server, contestant.cold_state, 1 if server else CACHED_REPEATS)
            if server and sequential and scenario.readers == 1:
                take(contestant, scenario, server, "second read", CACHED_REPEATS)
        if contestant.key == "modelstore" and scenario.what == "finetune" and sequential and scenario.readers == 1:
            with contestant.session() as server:
                processes.touch(contestant.path("base"), TOUCH_BYTES)
                take(contestant, scenario, server, "base decoded")

    for number in range(rounds):
        for scenario in SCENARIOS:
            say(f"round {number + 1} of {rounds}: {scenario.what}, {scenario.access}, {scenario.readers} reader(s)")
            for contestant in turns.shuffled((number, *scenario)):
                with turns.of(contestant):
                    visit(contestant, scenario)
    names = ("server", "what", "state", "access", "readers")
    return [{**dict(zip(names, key)), "rounds": values} for key, values in rows.items()]


# Push: each returns {wall_s, cpu_s, rss_bytes, base_bytes, finetune_bytes, total_bytes} of storing both models.

Packer = collections.namedtuple("Packer", "key label program pack")


def folder_bytes(folder):
    return sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())


def added(*usages):
    return {"wall_s": sum(u["wall_s"] for u in usages), "cpu_s": sum(u["cpu_s"] for u in usages),
            "rss_bytes": max(u["rss_bytes"] for u in usages)}


def pack_modelstore(program, models, out):
    usages, stored = [], {}
    for role in ("base", "finetune"):
        usage, text = processes.run([program, "--store", out / "store", "--json", "push", models.folders[role],
                                     "--name", role])
        usages.append(usage)
        stored[f"{role}_bytes"] = json.loads(text)["stored_bytes"]
    return {**added(*usages), **stored, "total_bytes": sum(stored.values())}


def pack_lmz(program, models, out):
    # One archive of both, so that it may code the finetune against the base.
    contenders.link_pair(models, out / "pair")
    usage, _ = processes.run([program, "compress", "-q", out / "pair", out / "pair.lmz"])
    return {**usage, "total_bytes": (out / "pair.lmz").stat().st_size}


def pack_zipnn(python, models, out):
    usage, text = processes.run([python, pathlib.Path(__file__).with_name("zipnn_pack.py"), models.folders["base"],
                                 models.folders["finetune"], out])
    result = json.loads(text.splitlines()[-1])
    return {**usage, **result, "total_bytes": result["base_bytes"] + result["finetune_bytes"]}


def pack_zstd(program, models, out):
    usages, stored = [], {}
    for role in ("base", "finetune"):
        (out / role).mkdir(parents=True)
        for number, path in enumerate(sorted(p for p in models.folders[role].rglob("*") if p.is_file())):
            base = models.folders["base"] / path.relative_to(models.folders[role])
            patch = [f"--patch-from={base}"] if role == "finetune" and base.is_file() else []
            usages.append(processes.run([program, "-q", "-T0", *patch, path, "-o", out / role / str(number)])[0])
        stored[f"{role}_bytes"] = folder_bytes(out / role)
    return {**added(*usages), **stored, "total_bytes": sum(stored.values())}


def measure_push(models, packers, work, rounds, missing, say):
    rows = collections.defaultdict(list)
    turns, labels = Turns(packers, missing, say), {p.key: p.label for p in packers}
    for role in ("base", "finetune"):
        processes.fill_pages(models.folders[role])
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: push of both models")
        for packer in turns.shuffled(number):
            out = work / "push"
            out.mkdir()
            try:
                with turns.of(packer):
                    result = packer.pack(packer.program, models, out)
                    rows[packer.key].append(result)
            finally:
                shutil.rmtree(out)
    return [{"tool": key, "label": labels[key], "rounds": values}
            for key, values in rows.items()]


class Loader:
    """The process that loads with torch: started before the first load, since importing torch is not measured."""

    def __init__(self, python):
        self.python, self.process = python, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def start(self):
        if not self.process:
            script = pathlib.Path(__file__).with_name("load_tensors.py")
            self.process = processes.start([self.python, "-W", "ignore", script], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.answer()

    def answer(self):
        line = ""
        if select.select([self.process.stdout], [], [], LOAD_SECONDS)[0]:
            line = self.process.stdout.readline()
        if not line:
            self.__exit__()
            raise processes.Failure("loading with torch and safetensors failed or took too long")
        return line

    def load(self, path):
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        return json.loads(self.answer())


def measure_load(models, contestants, python, rounds, missing, say):
    """Rows of {server, state} for the finetune, read from the disk as well as from the page cache."""
    rows = collections.defaultdict(list)
    turns = Turns(contestants, missing, say)

    def visit(contestant, state):
        at_rest = getattr(contestant, "store", models.path("finetune"))
        (processes.drop_pages if state == "from disk" else processes.fill_pages)(at_rest)
        loader.start()
        with contestant.session() as server:
            if state == "from disk" and server:
                processes.drop_pages(at_rest)  # what the server read while it started
            before = processes.cpu_seconds(server.pid) if server else 0
            result = loader.load(contestant.path("finetune"))
            result["server_cpu_s"] = processes.cpu_seconds(server.pid) - before if server else 0
            rows[contestant.key, state].append(result)

    with Loader(python) as loader:
        for number in range(rounds):
            for state in ("from disk", "page cache"):
                say(f"round {number + 1} of {rounds}: loading the finetune with torch, {state}")
                for contestant in turns.shuffled((number, state)):
                    with turns.of(contestant):
                        visit(contestant, state)
    return [{"server": server, "state": state, "rounds": values} for (server, state), values in rows.items()]
