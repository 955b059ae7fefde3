#!/usr/bin/env python3
"""docs/format.md is complete: a reader that was written from it alone (read_store.py) rebuilds what modelstore stored.

    reference_test.py [FOLDER_OF_PROGRAMS]

Reads the stores of released versions (tests/data/compat), and with modelstore's programs stores of this build. Exits 77
(skipped) where numpy or a shared library of RocksDB, zstd or xxhash is missing; MODELSTORE_PYTHON may name a python
that has numpy.
"""
import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

sys.dont_write_bytecode = True

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from other_python import start_again_or_skip  # noqa: E402

try:
    import read_store
except ImportError as missing:
    start_again_or_skip(missing, "numpy")

import numpy as np  # noqa: E402

import arithmetic  # noqa: E402
import coder  # noqa: E402
import records  # noqa: E402
import sources  # noqa: E402
import usage  # noqa: E402
from libraries import Corrupt, Database, Unsupported, hash64  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPAT = ROOT / "tests/data/compat"
PROGRAMS = pathlib.Path(sys.argv.pop(1)) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else None


def examples():
    """The worked examples of docs/format.md by name."""
    text = (ROOT / "docs/format.md").read_text()
    blocks = re.findall(r"```hex (\S+)\n(.*?)```", text, re.S)
    return {name: bytes.fromhex(re.sub("#.*", "", block)) for name, block in blocks}


def expected_of_released():
    """What the stores of released versions hold, as tests/compat says: store -> model -> path -> SHA-256."""
    stores, text = {}, (ROOT / "tests/compat/released_formats_test.cc").read_text()
    for store, path, sha256, model in re.findall(
            r'CheckStore\(\s*"([^"]+)"|\{"([^"]+)", "([0-9a-f]{64})"\}|\{"([^"]+)",\s*(?=\{\{)', text):
        if store:
            models = stores[store] = {}
        if model:
            files = models[model] = {}
        # A model's opening brace and its first file's are one match each, in this order.
        if path:
            files[path] = sha256
    return stores


def listing(folder):
    return {path: path.read_bytes() for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


def rebuilt(store, sha256):
    content = bytearray()
    store.rebuild(sha256, content.extend)
    return bytes(content)


class Tampered(read_store.Store):
    """A store in whose block values, records or decoded tensors bytes differ: `change` has a function by family."""

    def __init__(self, folder, change):
        self.change = change
        super().__init__(folder)

    def needed(self, family, key):
        value = super().needed(family, key)
        return self.change[family](key, value) if family in self.change else value

    def decode(self, tensors):
        for content in super().decode(tensors):
            yield self.change["decoded"](content) if "decoded" in self.change else content


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


class Document(unittest.TestCase):
    def test_records_of_the_examples(self):
        known = {"tensor": records.parse_tensor, "file": records.parse_file, "model": records.parse_model,
                 "catalog": records.parse_catalog}
        tried = 0
        for name, data in examples().items():
            kind = name.removesuffix("-record").split("-")[-1]
            if not name.endswith("-record") or kind not in known or kind == "tensor":
                continue
            known[kind](data)
            for size in range(len(data)):
                with self.subTest(name=name, size=size), self.assertRaises((Corrupt, Unsupported)):
                    known[kind](data[:size])
            with self.subTest(name=name), self.assertRaises(Corrupt):
                known[kind](data + b"\0")
            with self.subTest(name=name), self.assertRaises(Unsupported):
                known[kind](b"\x09" + data[1:])
            tried += 1
        self.assertGreaterEqual(tried, 7)

    def test_example_of_a_model_with_times(self):
        model = records.parse_model(examples()["timed-model-record"])
        self.assertEqual((model.name, model.created_ns, model.bytes, model.added_bytes), ("m", 3, 3, 4))
        self.assertEqual((model.files[0].mtime_ns, model.files[0].published_ns), (10413792000 * 10**9 + 5, 2))

    def test_example_of_a_delta(self):
        frame = records.parse_frame(examples()["delta-frame"])
        base = (0x3f80 + np.arange(200) % 7).astype(np.uint16)
        content, = coder.decode_blocks([(frame, [examples()["delta-block"]], base)])
        self.assertEqual(content.tolist(), (base + (np.arange(200) % 10 == 0)).tolist())
        with self.assertRaises(Corrupt):
            coder.decode_blocks([(frame, [examples()["delta-block"]], base + np.uint16(1 << 7))])

    def test_example_of_a_compact_tensor(self):
        frame = records.parse_frame(examples()["compact-frame"])
        base = np.array([0x3f80] * 5 + [0xbf00], np.uint16)
        parts = [np.frombuffer(examples()["compact-" + name], np.uint16) for name in ("factors", "residual", "scales")]
        self.assertEqual(arithmetic.compact_tensor(frame, base, *parts).tobytes(), examples()["compact-result"])

    def test_example_of_a_block_value(self):
        value = examples()["block-value"]
        self.assertEqual(hash64(value[8:]), int.from_bytes(value[:8], "little"))


class Released(unittest.TestCase):
    def stores(self):
        for name in expected_of_released():
            yield name, COMPAT / name

    def test_all_stores_are_known(self):
        self.assertEqual(sorted(expected_of_released()), sorted(path.name for path in COMPAT.iterdir()))

    def test_every_file_is_rebuilt(self):
        for name, folder in self.stores():
            before = listing(folder)
            with contextlib.closing(read_store.Store(folder)) as store:
                found = {}
                for model in store.models.values():
                    found[model.name] = {}
                    for file in model.files:
                        content = rebuilt(store, file.sha256)
                        self.assertEqual(len(content), file.bytes)
                        found[model.name][file.path] = hashlib.sha256(content).hexdigest()
                        self.assertEqual(found[model.name][file.path], file.sha256.hex())
            self.assertEqual(found, expected_of_released()[name])
            self.assertEqual(listing(folder), before)

    def test_damaged_blocks_are_refused(self):
        """One bit of one block differs, and its checksum does not tell or does."""
        for name, folder in self.stores():
            with contextlib.closing(read_store.Store(folder)) as store:
                blocks = dict(store.db.items("blocks"))
                files = {file.sha256 for model in store.models.values() for file in model.files}
            tried = set()
            for block, value in blocks.items():
                middle = 8 + (len(value) - 8) // 2
                for at, checked in ((middle, True), (8, False), (middle, False), (len(value) - 1, False)):
                    def change(key, value):
                        if key != block:
                            return value
                        tried.add(block)
                        value = flipped(value, at)
                        return value if checked else hash64(value[8:]).to_bytes(8, "little") + value[8:]

                    with contextlib.closing(Tampered(folder, {"blocks": change})) as store:
                        with self.subTest(store=name, block=block.hex(), at=at), self.assertRaises(Corrupt):
                            for sha256 in files:
                                store.rebuild(sha256)
            self.assertEqual(tried, set(blocks))

    def test_damaged_content_is_refused(self):
        for name, folder in self.stores():
            for at in (0, -1):
                def change(content):
                    return flipped(content, at % len(content)) if content else content

                with contextlib.closing(Tampered(folder, {"decoded": change})) as store:
                    with self.subTest(store=name, at=at), self.assertRaisesRegex(Corrupt, "hash of tensor"):
                        for model in store.models.values():
                            for file in model.files:
                                store.rebuild(file.sha256)

    def test_missing_records_are_refused(self):
        for name, folder in self.stores():
            for gone in ("files", "tensors", "blocks", "meta"):
                with self.subTest(store=name, gone=gone), self.assertRaises(Corrupt):
                    with mock.patch.object(Database, "get", lambda self, family, key, get=Database.get: (
                            None if family == gone else get(self, family, key))):
                        with contextlib.closing(read_store.Store(folder)) as store:
                            store.rebuild(store.models["base"].files[-1].sha256)

    def test_another_catalog_is_refused(self):
        """A model that the catalog record does not count, a family and a feature that nobody knows."""
        folder = COMPAT / "format-1"
        items = Database.items
        with mock.patch.object(Database, "items", lambda self, family: items(self, family)[1:]):
            self.assertRaisesRegex(Corrupt, "counts", read_store.Store, folder)
        with mock.patch.object(read_store, "FAMILIES", read_store.FAMILIES - {"sketches"}):
            self.assertRaisesRegex(Unsupported, "sketches", read_store.Store, folder)
        with mock.patch.object(records, "FEATURES", set()):
            self.assertRaisesRegex(Unsupported, "compact", read_store.Store, COMPAT / "format-1-compact")


@unittest.skipUnless(PROGRAMS and (PROGRAMS / "modelstore").exists(), "no modelstore program is given")
class Current(unittest.TestCase):
    """Stores that the build under test writes."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="modelstore-reference-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.store = self.folder / "store"

    def run_program(self, *arguments):
        ran = subprocess.run([PROGRAMS / "modelstore", "--store", self.store, "-q", *map(str, arguments)],
                             capture_output=True, text=True)
        self.assertEqual(ran.returncode, 0, ran.stderr)

    def push(self, name, *arguments, source=None):
        self.run_program("push", self.folder / (source or name), "--name", name, *arguments)

    def check(self, encodings):
        """Every file is rebuilt; that of a model with a folder of its name is that folder's, others are as exported.
        The records that follow from others are as the document says."""
        with contextlib.closing(read_store.Store(self.store)) as store:
            for name, model in store.models.items():
                source = self.folder / name
                if not source.exists():
                    source = self.folder / "exported" / name
                    self.run_program("export", name, source)
                files = {path.relative_to(source).as_posix(): content for path, content in listing(source).items()}
                files.pop("MODELSTORE_FIDELITY.txt", None)
                self.assertEqual({file.path for file in model.files}, set(files))
                for file in model.files:
                    self.assertTrue(rebuilt(store, file.sha256) == files[file.path], f"{name}/{file.path}")
            counted = usage.Counted(store)
            for key, value in store.db.items("meta"):
                if key.startswith(b"usage/"):
                    self.assertEqual(value.hex(), counted.record(key[6:]).hex())
                elif key == b"usage":
                    self.assertEqual(value.hex(), counted.totals().hex())
            self.assertEqual({key for key, _ in store.db.items("edges")}, counted.edges())
            self.assertEqual(dict(store.db.items("sketches")), counted.sketches())
        self.assertLessEqual(encodings, {tensor.frame.encoding for tensor in counted.tensors.values()})

    def test_sizes_and_files(self):
        for name in sources.write_sizes(self.folder):
            self.push(name)
        self.check({records.RAW, records.ZSTD, records.SELF, records.DELTA})

    def test_deltas_between_all_dtypes(self):
        dtypes = sources.write_cross_dtypes(self.folder)
        for base in dtypes:
            with self.subTest(base=base):
                shutil.rmtree(self.store, ignore_errors=True)
                self.push(base)
                for dtype in dtypes:
                    if dtype != base:
                        self.push(dtype, "--base", base)
                self.check({records.DELTA})

    def test_compact_models(self):
        sources.write_networks(self.folder)
        self.push("network")
        for i, flags in enumerate((["--target-ratio", 5], ["--target-ratio", 60], ["--rank", 3, "--residual-step", 0.5],
                                   ["--bits", 4, "--sparsity", 0.8, "--group", 100], ["--bits", 2])):
            self.push(f"compact-{i}", "--fidelity", "compact", "--base", "network", *flags, source="network-ft")
        self.check({records.COMPACT, records.SELF, records.DELTA})

    def test_derived_models(self):
        for dtype in ("BF16", "F16", "F32"):
            name = "llama-" + dtype
            sources.write_moments(self.folder / "moments.safetensors", sources.write_llama(self.folder, name, dtype))
            self.push(name)
            self.run_program("derive", name, "--name", name + "-short", "--drop-layers", 1)
            for basis in ("block", "global"):
                self.run_program("derive", name, "--name", f"{name}-{basis}", "--slice", 0.25, "--basis", basis,
                                 "--moments", self.folder / "moments.safetensors")
        self.check({records.PROJECTED})

    def test_an_updated_model(self):
        sources.write_sizes(self.folder)
        self.push("files")
        os.utime(self.folder / "files" / "one", ns=(0, 13 * 10**18 + 7))
        (self.folder / "files" / "text").write_bytes(b"another text")
        self.push("files", "--update")
        with contextlib.closing(read_store.Store(self.store)) as store:
            files = {file.path: file for file in store.models["files"].files}
            self.assertEqual(files["one"].mtime_ns, (self.folder / "files" / "one").stat().st_mtime_ns)
            self.assertEqual(files["one"].mode, 0o400)  # the folder is its owner's alone
        self.check(set())


if __name__ == "__main__":
    unittest.main()
