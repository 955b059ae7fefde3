"""Who serves files to readers in the benchmark: modelstore, the null server, lmz, and the plain file."""
import contextlib
import os
import pathlib
import shutil

import processes

PAIR_FOLDERS = {"base": "0-base", "finetune": "1-finetune"}  # in the order in which lmz reads them
READ_AHEAD_KB = 8192  # modelstore's default


def largest_file(folder):
    """The path, within the folder, of its largest file: the one that is read."""
    files = [p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()]
    if not files:
        raise processes.Failure(f"{folder}: no files in it")
    return max(files, key=lambda p: p.stat().st_size).relative_to(folder).as_posix()


def raise_read_ahead(mountpoint):
    device = os.stat(mountpoint).st_dev
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    if os.access(path, os.W_OK):
        pathlib.Path(path).write_text(f"{READ_AHEAD_KB}\n", encoding="ascii")


class Models:
    """Copies of both models on the disk that is measured, in the page cache."""

    def __init__(self, base, finetune, work):
        self.sources = {"base": pathlib.Path(base), "finetune": pathlib.Path(finetune)}
        self.folders, self.files = {}, {}
        for role, source in self.sources.items():
            if not source.is_dir():
                raise processes.Failure(f"{source}: not a folder with a model")
            self.folders[role] = pathlib.Path(shutil.copytree(source, work / "models" / role))
            self.files[role] = largest_file(source)

    def path(self, role):
        return self.folders[role] / self.files[role]

    def bytes_of_file(self, role):
        return self.path(role).stat().st_size

    def bytes(self, role):
        return sum(p.stat().st_size for p in self.folders[role].rglob("*") if p.is_file())


def link_pair(models, folder):
    """Both models below one folder, as lmz takes them; links cost nothing."""
    for role, name in PAIR_FOLDERS.items():
        shutil.copytree(models.folders[role], folder / name, copy_function=os.link)


class Plain:
    """The source file, in the page cache."""
    key, label, cold_state = "plain", "plain file", "page cache"

    def __init__(self, models):
        self.models = models

    @contextlib.contextmanager
    def session(self):
        yield None

    def path(self, role):
        return str(self.models.path(role))


class Served:
    """A contender with a server process: each session is a new process and a new mount, so nothing is cached."""
    cold_state = "cold"

    def __init__(self, models, work):
        self.models = models
        self.mountpoint = str(work / f"mnt-{self.key}")

    def session(self):
        return processes.Server(self.command(), self.mountpoint, self.within("finetune"), self.label,
                                environment=self.environment())

    def environment(self):
        return {}

    def path(self, role):
        return os.path.join(self.mountpoint, self.within(role))


class Null(Served):
    key, label = "null", "null server"

    def __init__(self, program, models, work):
        super().__init__(models, work)
        self.program = program

    def command(self):
        return [self.program, self.mountpoint, str(max(map(self.models.bytes_of_file, ("base", "finetune"))))]

    def within(self, role):
        return "data"


class ModelStore(Served):
    """A store of its own, served by a daemon with the defaults of its configuration."""
    key, label = "modelstore", "modelstore"

    def __init__(self, program, daemon, models, work):
        super().__init__(models, work)
        self.daemon, self.store = daemon, work / "store"
        self.config, self.socket = work / "config.toml", work / "socket"
        self.config.touch()  # empty: not that of this machine
        for role in ("base", "finetune"):
            processes.run([program, "--store", self.store, "--json", "push", models.folders[role], "--name", role])
        processes.fill_pages(self.store)

    def command(self):
        return [self.daemon, "--config", str(self.config), "--store", str(self.store), "--mount", self.mountpoint,
                "--socket", str(self.socket)]

    def within(self, role):
        return f"{role}/{self.models.files[role]}"


class LmzPair(Served):
    """Both models in one archive, the finetune as a difference: lmz's smallest form that it can mount.

    lmz leaves the kernel's read-ahead as it is. Its mount gets here what modelstore sets for its own, where root may:
    larger reads help it too.
    """
    key, label = "lmz-pair", "lmz, one archive"

    def __init__(self, program, models, work):
        super().__init__(models, work)
        self.program, self.store = program, work / f"store-{self.key}"
        self.add()
        processes.fill_pages(self.store)

    @contextlib.contextmanager
    def session(self):
        with super().session() as server:
            raise_read_ahead(self.mountpoint)
            yield server

    def add(self):
        pair = self.store.with_suffix(".source")
        link_pair(self.models, pair)
        processes.run([self.program, "add", "--store", self.store, "--name", "pair", "-q", pair])
        shutil.rmtree(pair)

    def command(self):
        return [self.program, "mount", "--store", str(self.store), "-q", self.mountpoint]

    def within(self, role):
        return f"pair/{PAIR_FOLDERS[role]}/{self.models.files[role]}"


class LmzAlone(LmzPair):
    """Each model an archive of its own: larger, and faster to read."""
    key, label = "lmz-alone", "lmz, each alone"

    def add(self):
        for role in ("base", "finetune"):
            processes.run([self.program, "add", "--store", self.store, "--name", role, "-q", self.models.folders[role]])

    def within(self, role):
        return f"{role}/{self.models.files[role]}"
