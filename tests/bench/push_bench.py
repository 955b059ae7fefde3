#!/usr/bin/env python3
"""Push against other compressors, side by side: BASE and FINETUNE folders, in turn, several rounds in one run.

    push_bench.py --modelstore build/release/bin/modelstore [--lmz PATH] [--rounds 5] BASE FINETUNE

A push of modelstore includes the choice of the base, hashing, and decoding what was stored; the others only write. Each figure is a
median over the rounds; ratios are taken round by round, so that a machine whose speed drifts does not decide. lmz comes from PyPI
(pip install lmzip); without it the bench says so and times modelstore alone.
"""
import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import tempfile
import time


def folder_bytes(path):
    return sum(p.stat().st_size for p in pathlib.Path(path).rglob("*") if p.is_file())


def run(command):
    """Wall and CPU seconds of a command, and its standard output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout


def push_pair(modelstore, models, work):
    store = work / "store"
    wall = cpu = 0
    stored = []
    for model in models:
        w, c, out = run([modelstore, "--store", str(store), "--json", "push", model])
        wall, cpu = wall + w, cpu + c
        stored.append(json.loads(out)["stored_bytes"])
    shutil.rmtree(store)
    return wall, cpu, stored


def lmz_pair(lmz, models, work):
    # One archive of both, so that it may code the finetune against the base.
    pair = work / "pair"
    pair.mkdir()
    for i, model in enumerate(models):
        shutil.copytree(model, pair / f"{i}-{pathlib.Path(model).name}", copy_function=os.link)
    archive = work / "pair.lmz"
    wall, cpu, _ = run([lmz, "compress", "-q", str(pair), str(archive)])
    size = archive.stat().st_size
    shutil.rmtree(pair)
    archive.unlink()
    return wall, cpu, size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelstore", required=True)
    parser.add_argument("--lmz", default=shutil.which("lmz"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", help="a folder on the disk to measure (default: the system's temporary folder)")
    parser.add_argument("models", nargs=2, metavar="FOLDER")
    args = parser.parse_args()
    models = [str(pathlib.Path(m).resolve()) for m in args.models]
    sizes = [folder_bytes(m) for m in models]
    logical = sum(sizes)

    ours, theirs = [], []
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        work = pathlib.Path(temporary)
        # Hard links need the models on the same disk as the archive.
        copies = [str(shutil.copytree(m, work / f"source{i}" / pathlib.Path(m).name)) for i, m in enumerate(models)]
        for _ in range(args.rounds + 1):  # the first warms the page cache and is not counted
            ours.append(push_pair(args.modelstore, copies, work))
            if args.lmz:
                theirs.append(lmz_pair(args.lmz, copies, work))
    ours, theirs = ours[1:], theirs[1:]

    def median(rows, column):
        return statistics.median(row[column] for row in rows)

    stored = ours[0][2]
    print(f"base      {sizes[0] / 1e6:8.1f} MB -> {stored[0] / 1e6:7.1f} MB  {stored[0] / sizes[0]:.4f}")
    print(f"finetune  {sizes[1] / 1e6:8.1f} MB -> {stored[1] / 1e6:7.1f} MB  {stored[1] / sizes[1]:.4f}")
    print(f"modelstore push, both: {median(ours, 0):.2f} s wall, {median(ours, 1):.2f} s CPU, "
          f"{logical / median(ours, 0) / 1e9:.2f} GB/s, {sum(stored) / logical:.4f} of raw")
    if not theirs:
        print("lmz: not found (pip install lmzip, then --lmz PATH)")
        return
    print(f"lmz compress, both:    {median(theirs, 0):.2f} s wall, {median(theirs, 1):.2f} s CPU, "
          f"{logical / median(theirs, 0) / 1e9:.2f} GB/s, {theirs[0][2] / logical:.4f} of raw")
    wall = sorted(o[0] / t[0] for o, t in zip(ours, theirs))
    cpu = sorted(o[1] / t[1] for o, t in zip(ours, theirs))
    print(f"modelstore / lmz: wall {statistics.median(wall):.2f} ({wall[0]:.2f} to {wall[-1]:.2f}), "
          f"CPU {statistics.median(cpu):.2f} ({cpu[0]:.2f} to {cpu[-1]:.2f}), {args.rounds} rounds")


if __name__ == "__main__":
    main()
