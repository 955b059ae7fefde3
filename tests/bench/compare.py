#!/usr/bin/env python3
"""modelstore side by side with the alternatives, in one run: reading through the mount, storing, loading with torch.

    tests/bench/compare.py --fetch-peers          lmz, zipnn and torch into the cache folder, once
    tests/bench/compare.py BASE FINETUNE          two folders with models, the second finetuned from the first

Without folders it reads the small models that scripts/demo.sh has fetched. What each row means: docs/benchmarks.md.
"""
import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

import contenders
import measure
import peers
import plot
import processes
import results

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs/benchmarks.md"
IMAGE = ROOT / "docs/images/benchmarks.svg"
PARTS = ("mount", "push", "load")
PROGRAMS = ("modelstore", "modelstored", "bench_null_fuse", "bench_reader")
SKIPPED = 77


def say(line):
    print(f"compare: {line}", file=sys.stderr, flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="FOLDER", help="BASE and FINETUNE")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin",
                        help="folder of the programs (default: build/release/bin)")
    parser.add_argument("--venv", type=pathlib.Path, default=peers.cache_folder() / "venv",
                        help="the peers' virtual environment (default: below the cache folder)")
    parser.add_argument("--work", help="a folder on the disk to measure (default: the system's temporary folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part only; may be given more than once")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="writes all results, each round's too")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="writes the plot (SVG)")
    parser.add_argument("--write-docs", action="store_true",
                        help="writes the results into docs/benchmarks.md and the plot that README shows")
    parser.add_argument("--from-json", type=pathlib.Path, metavar="FILE", help="no run: shows what --json has written")
    parser.add_argument("--fetch-peers", action="store_true", help="fetches lmz, zipnn and torch, and ends")
    parser.add_argument("--self-test", action="store_true", help="runs on tiny made models and checks the results")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds: expected at least 1")
    if len(args.models) not in (0, 2):
        parser.error(f"expected two folders, BASE and FINETUNE, not {len(args.models)}")
    return args


def default_models():
    """The demo's pair: small, so that its rates say little; its point is that it needs nothing else."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(base) / "modelstore-demo/models"
    pair = [folder / "minilm-l6-v2", folder / "minilm-l6-v2-repackaged"]
    if not all(p.is_dir() for p in pair):
        raise processes.Failure("no models: give two folders, BASE and FINETUNE, or run scripts/demo.sh once, which "
                                "fetches small ones")
    say("no folders given: comparing with the demo's pair, whose second model repeats the first; give a base and a "
        "finetune for figures that mean more")
    return pair


def check_programs(folder):
    for name in PROGRAMS:
        if not os.access(folder / name, os.X_OK):
            raise processes.Failure(f"{folder / name}: not built (scripts/build.sh --tests builds it)")


def missing_fuse():
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}; a mount needs it (modprobe fuse; in a container --device /dev/fuse)"
    return None


def describe_machine():
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        flags = next((set(line.split()) for line in stream if line.startswith("flags")), set())
    found = "avx512" if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags else \
        "avx2" if "avx2" in flags else "baseline"
    target = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "no AVX2"}.get(os.environ.get("MODELSTORE_CPU") or found)
    return {"cores": len(os.sched_getaffinity(0)), "target": target,
            "linux": ".".join(platform.release().split(".")[:2]),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}


def measure_all(args, models, peer, work):
    missing, program = [], str(args.bin / "modelstore")
    parts = args.only or PARTS
    copies = contenders.Models(*models, work)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    result = {"schema": 1, "version": version, "machine": describe_machine(), "rounds": args.rounds,
              "load_average": os.getloadavg()[0],
              "models": {role: {"name": copies.sources[role].name, "bytes": copies.bytes(role),
                                "file_bytes": copies.bytes_of_file(role)} for role in ("base", "finetune")},
              "peers": peer.versions()}
    raw = {}

    without_lmz, without_torch = peer.missing_lmz(), peer.missing_torch()
    if "push" in parts:
        packers = []
        for absent, *packer in ((None, "modelstore", "modelstore", program, measure.pack_modelstore),
                                (without_lmz, "lmz", "lmz compress", peer.lmz, measure.pack_lmz),
                                (peer.missing_zipnn(), "zipnn", "zipnn", peer.python, measure.pack_zipnn),
                                (peer.missing_zstd(), "zstd", "zstd --patch-from", peer.zstd, measure.pack_zstd)):
            if absent:
                missing.append(absent)
            else:
                packers.append(measure.Packer(*packer))
        raw["push"] = measure.measure_push(copies, packers, work, args.rounds, missing, say)

    if "mount" in parts or "load" in parts:
        servers = [("plain", lambda: contenders.Plain(copies)),
                   ("null", lambda: contenders.Null(str(args.bin / "bench_null_fuse"), copies, work)),
                   ("modelstore", lambda: contenders.ModelStore(program, str(args.bin / "modelstored"), copies, work))]
        if not without_lmz:
            servers += [("lmz", lambda: contenders.LmzPair(peer.lmz, copies, work)),
                        ("lmz", lambda: contenders.LmzAlone(peer.lmz, copies, work))]
        elif without_lmz not in missing:
            missing.append(without_lmz)
        say("filling the stores")
        made = measure.make_all(servers, missing, say)
        if "mount" in parts:
            reader = str(args.bin / "bench_reader")
            raw["mount"] = measure.measure_mount(copies, made, reader, args.rounds, missing, say)
        if "load" in parts:
            loadable = copies.files["finetune"].endswith(".safetensors")
            if without_torch or not loadable:
                missing.append(without_torch or f"loading: {copies.files['finetune']} is not a safetensors file")
            else:
                raw["load"] = measure.measure_load(copies, [c for c in made if c.key != "null"], peer.python,
                                                   args.rounds, missing, say)

    return results.summarise({**result, "missing": missing, "raw": raw})


def run(args, models, peer):
    parts = args.only or PARTS
    check_programs(args.bin)
    no_fuse = missing_fuse() if {"mount", "load"} & set(parts) else None
    if no_fuse:
        raise processes.Failure(no_fuse)
    with tempfile.TemporaryDirectory(prefix="modelstore-compare.", dir=args.work) as work:
        return measure_all(args, models, peer, pathlib.Path(work).resolve())


def put_out(args, result):
    print(results.render(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        args.plot.write_text(plot.svg(result), encoding="utf-8")
    if args.write_docs:
        results.write_docs(DOCS, result)
        IMAGE.parent.mkdir(parents=True, exist_ok=True)
        IMAGE.write_text(plot.svg(result), encoding="utf-8")


def self_test(args):
    """All of the driver in seconds: tiny models, one round, no peers; exits 77 where nothing can be mounted."""
    if missing_fuse():
        say(f"skipped: {missing_fuse()}")
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="modelstore-compare-test.") as folder:
        folder = pathlib.Path(folder).resolve()
        models, make = [folder / "base", folder / "finetune"], ROOT / "tests/cli/tools/make_model.py"
        for model, arguments in zip(models, ([], ["--finetune", "2"])):
            subprocess.run([sys.executable, make, model, "1", *arguments], check=True)
        args.rounds, args.only, args.work, args.write_docs = 1, None, folder, False
        args.json, args.plot = folder / "out.json", folder / "out.svg"
        peer = peers.Peers(folder / "none")
        peer.zstd = None
        put_out(args, run(args, models, peer))

        result = json.loads(args.json.read_text(encoding="utf-8"))
        seen = {(r["server"], r["what"], r["state"], r["access"], r["readers"]) for r in result["mount"]}
        for scenario in measure.SCENARIOS:
            for server, state in (("plain", "page cache"), ("null", "cold"), ("modelstore", "cold")):
                assert (server, scenario.what, state, scenario.access, scenario.readers) in seen, (server, scenario)
        assert ("modelstore", "finetune", "base decoded", "read", 1) in seen
        assert ("modelstore", "finetune", "second read", "mmap", 1) in seen
        for row in result["mount"]:
            assert row["best"] >= row["median"] > 0 and row["client_rss_bytes"] > 0, row
            assert row["server"] == "plain" or row["server_rss_bytes"] > 0 and row["share_of_null"]["median"] > 0, row
        (push,) = result["push"]
        assert push["tool"] == "modelstore" and 0 < push["finetune_bytes"] < push["base_bytes"], push
        named = " ".join(result["missing"])
        assert all(word in named for word in ("lmz", "zipnn", "zstd", "torch")), named
        assert xml.etree.ElementTree.parse(args.plot).getroot().tag.endswith("svg")

        docs = folder / "docs.md"
        docs.write_text(f"before\n{results.BEGIN}\nstale\n{results.END}\nafter\n", encoding="utf-8")
        results.write_docs(docs, result)
        text = docs.read_text(encoding="utf-8")
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text and "| " in text
        left = [p.name for p in folder.iterdir() if p.name.startswith("modelstore-compare.")]
        assert not left, left
    with open("/proc/self/mounts", encoding="utf-8") as stream:
        assert str(folder) not in stream.read()
    say("self-test passed")
    return 0


def main():
    args = parse()
    processes.stop_on_signals(say)
    try:
        if args.fetch_peers:
            peers.fetch(args.venv)
            return 0
        if args.self_test:
            return self_test(args)
        if args.from_json:
            result = results.summarise(json.loads(args.from_json.read_text(encoding="utf-8")))
        else:
            began = time.monotonic()
            result = run(args, args.models or default_models(), peers.Peers(args.venv))
            say(f"{time.monotonic() - began:.0f} s")
        put_out(args, result)
    except (processes.Failure, OSError, json.JSONDecodeError) as error:
        say(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
