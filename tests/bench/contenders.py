"""Who serves files to readers in the benchmark: modelstore, the null server, lmz, and the plain file."""
import contextlib
import os
import pathlib
import shutil

import processes


def largest_file(folder):
    """The path, within the folder, of its largest file: the one that is read."""
    files = [p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()]
    if not files:
        raise processes.Failure(f"{folder}: no files in it")
    return max(files, key=lambda p: p.stat().st_size).relative_to(folder).as_posix()


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
        mib = max(1, max(map(self.models.bytes_of_file, ("base", "finetune"))) >> 20)
        return [self.program, self.mountpoint, str(mib)]

    def within(self, role):
        return "data"


class ModelStore(Served):
    key, label = "modelstore", "modelstore"

    def __init__(self, program, models, work):
        super().__init__(models, work)
        self.program, self.store = program, work / "store"
        for role in ("base", "finetune"):
            processes.run([program, "--store", self.store, "--json", "push", models.folders[role], "--name", role])
        processes.fill_pages(self.store)

    def command(self):
        return [self.program, "--store", str(self.store), "--json", "mount", self.mountpoint]

    def within(self, role):
        return f"{role}/{self.models.files[role]}"


class LmzPair(Served):
    """Both models in one archive, the finetune as a difference: lmz's smallest form that it can mount."""
    key, label = "lmz-pair", "lmz, one archive"

    def __init__(self, program, models, work):
        super().__init__(models, work)
        self.program, self.store = program, work / f"store-{self.key}"
        self.add()
        processes.fill_pages(self.store)

    def add(self):
        # Hard links below one folder, named so that the base comes first.
        pair = self.store.with_suffix(".source")
        for role in ("base", "finetune"):
            shutil.copytree(self.models.folders[role], pair / f"{'01'[role == 'finetune']}-{role}", copy_function=os.link)
        processes.run([self.program, "add", "--store", self.store, "--name", "pair", "-q", pair])
        shutil.rmtree(pair)

    def command(self):
        return [self.program, "mount", "--store", str(self.store), "-q", self.mountpoint]

    def within(self, role):
        return f"pair/{'01'[role == 'finetune']}-{role}/{self.models.files[role]}"


class LmzAlone(LmzPair):
    """Each model an archive of its own: larger, and faster to read."""
    key, label = "lmz-alone", "lmz, each alone"

    def add(self):
        for role in ("base", "finetune"):
            processes.run([self.program, "add", "--store", self.store, "--name", role, "-q", self.models.folders[role]])

    def within(self, role):
        return f"{role}/{self.models.files[role]}"
