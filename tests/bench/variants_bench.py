#!/usr/bin/env python3
"""What variants keep: perplexity against layers dropped and against the share sliced, with what each costs the store.

    tests/bench/variants_bench.py MODEL EVAL.npy MOMENTS.safetensors --json results.json

MODEL is a Llama checkpoint, EVAL.npy integers [sequences, length], the moments those of MODEL (modelstore-moments). The model
is pushed; then, one row after the other, a variant is derived, read through the mount, scored and removed. Rows that
results.json has are not run again. Needs numpy, for --plot and --write-docs matplotlib.
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile

import compact_bench  # first: starts this again with a python that has numpy
import llama_forward
import processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS, IMAGE = ROOT / "docs/derive.md", ROOT / "docs/images/variants.png"
BEGIN, END = "<!-- results: written by tests/bench/variants_bench.py --write-docs -->", "<!-- end of results -->"
WAYS = ("last", "uniform", "auto")
SLICES = (0, 0.1, 0.2, 0.25, 0.3)
# SliceGPT (arXiv:2401.15024), table 1: OPT-125M on WikiText-2.
PAPER = {0: 27.64, 0.1: 29.34, 0.2: 34.26, 0.25: 37.74, 0.3: 43.98}


def say(line):
    print(f"variants_bench: {line}", file=sys.stderr, flush=True)


def rows_of(layers):
    rows = [("whole", "", 0)]
    rows += [(way, f"--drop-layers {way}:{count}", count) for count in range(1, layers // 2 + 1) for way in WAYS]
    rows += [(basis, f"--slice {share} --basis {basis}", share) for basis in ("block", "global") for share in SLICES]
    return rows


def measure(row, store, tokens, moments, args):
    way, flags, _ = row
    if way == "whole":
        likelihoods, _ = llama_forward.score(llama_forward.Llama(args.base), llama_forward.Checkpoint(args.base), tokens)
        return {"perplexity": llama_forward.perplexity(likelihoods)}
    usage, text = store.command("derive", "base", "--name", "candidate", *flags.split(), "--moments", moments)
    report = json.loads(text)
    try:
        with store.mounted():
            folder = store.mountpoint / "candidate"
            rate = compact_bench.read_rate(folder)
            likelihoods, _ = llama_forward.score(llama_forward.Llama(folder), llama_forward.Checkpoint(folder), tokens)
    finally:
        store.remove()
    return {"perplexity": llama_forward.perplexity(likelihoods), "stored_bytes": report["stored_bytes"],
            "bytes": report["logical_bytes"], "recipe": report["recipe"], "derive_s": usage["wall_s"],
            "read_bytes_per_second": rate}


def run(args, result, keep):
    tokens = llama_forward.load_tokens(args.tokens)
    result.update(model=args.base.name, sequences=list(tokens.shape))
    layers = json.loads((args.base / "config.json").read_text())["num_hidden_layers"]
    have = {(row["way"], row["flags"]) for row in result["rows"]}
    rows = [row for row in rows_of(layers) if row[:2] not in have and (not args.only or row[0] in args.only)]
    if not rows:
        return
    with tempfile.TemporaryDirectory(prefix="modelstore-variants.", dir=args.work) as work:
        store = compact_bench.Store(args, pathlib.Path(work).resolve())
        for row in rows:
            measured = measure(row, store, tokens, args.moments, args)
            say(f"{row[1] or row[0]}: perplexity {measured['perplexity']:.2f}")
            result["rows"].append({"way": row[0], "flags": row[1], "amount": row[2], **measured})
            keep(result)


def by_amount(result, way):
    return {row["amount"]: row for row in result["rows"] if row["way"] == way}


def bytes_text(count):
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"


def perplexity_text(value):
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def render(result):
    dense = by_amount(result, "whole")[0]["perplexity"]
    lines = [f"{result['model']}, perplexity {dense:.3f} on {result['sequences'][0]} x {result['sequences'][1]} tokens.", ""]
    dropped = {way: by_amount(result, way) for way in WAYS}
    if dropped["auto"]:
        lines += ["| layers dropped | last | uniform | auto | stored (auto) |", "|---|---|---|---|---|"]
        for count in sorted(dropped["auto"]):
            cells = [perplexity_text(dropped[way][count]["perplexity"]) for way in WAYS]
            lines.append(f"| {count} | {' | '.join(cells)} | {bytes_text(dropped['auto'][count]['stored_bytes'])} |")
        lines.append("")
    block, one = by_amount(result, "block"), by_amount(result, "global")
    if block:
        lines += ["| sliced | block: perplexity, times the whole model's | stored, of its size | global: perplexity, times | "
                  "stored, of its size | paper, OPT-125M: times |", "|---|---|---|---|---|---|"]
        for share in sorted(block):
            cells = [cell for rows in (block, one) for cell in (
                f"{perplexity_text(rows[share]['perplexity'])}, {rows[share]['perplexity'] / dense:.3f}",
                f"{bytes_text(rows[share]['stored_bytes'])} of {bytes_text(rows[share]['bytes'])}")]
            lines.append(f"| {100 * share:g} % | {' | '.join(cells)} | {PAPER[share] / PAPER[0]:.3f} |")
        rates = [row["read_bytes_per_second"] / 1e6 for rows in (block, one) for share, row in rows.items() if share > 0]
        lines += ["", f"A first read of a sliced one through the mount: {min(rates):.0f} to {max(rates):.0f} MB/s "
                  f"({os.cpu_count()} threads)."]
    return "\n".join(lines)


def plot(result, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot
    dense = by_amount(result, "whole")[0]["perplexity"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12.5, 4.8))
    for way, style in zip(WAYS, ("s--", "^--", "o-")):
        rows = by_amount(result, way)
        counts = sorted(rows)
        left.plot([0, *counts], [1, *(rows[c]["perplexity"] / dense for c in counts)], style, label=way)
    left.set(yscale="log", ylim=(0.9, 100), xlabel="layers dropped", ylabel="perplexity / that of the whole model",
             title="Layers dropped")
    for way, style in (("block", "o-"), ("global", "s--")):
        rows = by_amount(result, way)
        shares = sorted(rows)
        right.plot([100 * s for s in shares], [rows[s]["perplexity"] / dense for s in shares], style, label=f"--basis {way}")
    right.plot([100 * s for s in PAPER], [p / PAPER[0] for p in PAPER.values()], "k:", label="SliceGPT's paper, OPT-125M")
    right.set(xlabel="hidden size sliced off, %", title="Sliced")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, shown in (("base", "MODEL"), ("tokens", "EVAL.npy"), ("moments", "MOMENTS")):
        parser.add_argument(name, metavar=shown, type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--json", required=True, type=pathlib.Path, metavar="FILE",
                        help="the results, written after every row; rows it has already are kept")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin",
                        help="folder of the programs (default: build/release/bin)")
    parser.add_argument("--only", action="append", metavar="WAY", help="last, uniform, auto, block, global or whole alone")
    parser.add_argument("--work", help="a folder for the store (default: the system's temporary folder)")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="writes the plot (PNG)")
    parser.add_argument("--write-docs", action="store_true", help=f"writes the tables into {DOCS.name} and its plot")
    return parser.parse_args(arguments)


def main():
    processes.stop_on_signals(say)
    args = parse(sys.argv[1:])
    try:
        compact_bench.measure_and_show(args, run, render, plot, DOCS, IMAGE, (BEGIN, END))
    except (processes.Failure, llama_forward.Unsupported, OSError, json.JSONDecodeError) as error:
        say(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
