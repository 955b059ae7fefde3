#!/usr/bin/env python3
"""What compact finetunes keep: ratio against the share of the finetune's gain in perplexity, and the divergence from it.

    tests/bench/compact_bench.py BASE FINETUNE EVAL.npy CALIBRATION.npy --json results.json

BASE and FINETUNE are Llama checkpoints, the token files integers [sequences, length]. The base is pushed exactly; then, one
row after the other, the finetune is pushed, read through the mount, scored and removed. The moments are made by
python/modelstore_moments.py unless --moments gives them. Rows that results.json has are not run again. Needs numpy, for the
moments torch and transformers, for --plot matplotlib. What the columns mean: docs/compact.md.

    tests/bench/compact_bench.py --self-test FOLDER_OF_PROGRAMS         some rows on a tiny model
"""
import argparse
import collections
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from other_python import start_again_or_skip  # noqa: E402

try:
    import numpy as np
except ImportError as missing:
    start_again_or_skip(missing, "numpy")

import llama_forward
import processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS, IMAGE = ROOT / "docs/compact.md", ROOT / "docs/images/compact.png"
BEGIN, END = "<!-- results: written by tests/bench/compact_bench.py --write-docs -->", "<!-- end of results -->"
RATIOS = (14, 20, 28, 95, 180, 390, 720, 2000)
GPT_ZIP = "--bits 2 --sparsity 0.95 --group 1024"  # the paper's setting
COMPACT = "--fidelity compact"
Row = collections.namedtuple("Row", "method flags")
EXACT, CALIBRATED, PLAIN = "exact", "compact, with moments", "compact, data-free"
ZIP_CALIBRATED, ZIP_PLAIN, BITDELTA = "GPT-Zip, with moments", "GPT-Zip, by magnitude", "1 bit (BitDelta)"


def say(line):
    print(f"compact_bench: {line}", file=sys.stderr, flush=True)


def rows_of(args):
    rows = [Row(EXACT, ""), Row(BITDELTA, "")]
    rows += [Row(method, f"{COMPACT} {GPT_ZIP}{moments}")
             for method, moments in ((ZIP_PLAIN, ""), (ZIP_CALIBRATED, " --moments M"))]
    rows += [Row(method, f"{COMPACT} --target-ratio {ratio:g}{moments}")
             for method, moments in ((PLAIN, ""), (CALIBRATED, " --moments M")) for ratio in args.ratios]
    for text in args.row:
        method, _, flags = text.partition("=")
        rows.append(Row(method.strip(), f"{COMPACT} {flags.strip()}"))
    return [row for row in rows if not args.only or any(word in row.method for word in args.only)]


class BitDelta:
    """The base plus, for each matrix, the delta's signs times its mean magnitude; all else as in the finetune. (As the
    authors' code has it, the sign of 0 is +; without their distillation of the scales.)"""

    def __init__(self, base, finetune):
        self.base, self.finetune = base, finetune

    def keys(self):
        return self.finetune.keys()

    def is_coded(self, name):
        return len(self.finetune.shape(name)) == 2

    def __getitem__(self, name):
        tuned = self.finetune[name]
        if not self.is_coded(name):
            return tuned
        base = self.base[name]
        delta = tuned - base
        scale = np.abs(delta).mean(dtype=np.float64).astype(np.float32)
        return rounded(base + np.where(delta < 0, -scale, scale), self.finetune.dtype(name))

    def stored_bytes(self):
        total = 0
        for name in self.keys():
            elements = int(np.prod(self.finetune.shape(name)))
            width = 4 if self.finetune.dtype(name) == "F32" else 2
            total += elements // 8 + 2 if self.is_coded(name) else elements * width
        return total


def rounded(values, dtype):
    """To the nearest value of the type that is stored, ties to even."""
    if dtype == "BF16":
        bits = values.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000).astype(np.uint32).view(np.float32)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


class Scores:
    """The base's and the finetune's own, and how a candidate compares with them."""

    def __init__(self, base, finetune, tokens):
        self.llama = llama_forward.Llama(finetune)
        self.base, self.finetune = llama_forward.Checkpoint(base), llama_forward.Checkpoint(finetune)
        say("scoring the finetune and its base")
        self.reference = llama_forward.Reference(self.llama, self.finetune, tokens)
        self.of_finetune, _ = self.reference.compare(self.finetune)
        self.of_base, divergence = self.reference.compare(self.base)
        self.pair = {"perplexity_base": llama_forward.perplexity(self.of_base), "kl_base": float(divergence.mean()),
                     "perplexity_finetune": llama_forward.perplexity(self.of_finetune)}

    def of(self, weights):
        likelihoods, divergence = self.reference.compare(weights)
        gain, gain_error = llama_forward.with_error(llama_forward.gain_kept, self.of_base, self.of_finetune, likelihoods)
        kl, kl_error = llama_forward.with_error(lambda d: float(d.mean()), divergence)
        return {"perplexity": llama_forward.perplexity(likelihoods), "gain": gain, "gain_error": gain_error, "kl": kl,
                "kl_error": kl_error}


class Store:
    """A store with the base in it, and one candidate at a time."""

    def __init__(self, args, work):
        self.args, self.folder, self.work = args, work / "store", work
        self.mountpoint = work / "mnt"
        (work / "config.toml").touch()  # empty: not that of this machine
        say("pushing the base")
        self.command("push", args.base, "--name", "base")

    def command(self, *words):
        return processes.run([self.args.bin / "modelstore", "--store", self.folder, "--json", *words])

    def push(self, row, moments):
        flags = [str(moments) if word == "M" else word for word in shlex.split(row.flags)]
        usage, text = self.command("push", self.args.finetune, "--name", "candidate", "--base", "base", *flags)
        report = json.loads(text)
        stored, logical = report["stored_bytes"], report["logical_bytes"]
        return {"stored_bytes": stored, "ratio": logical / stored, "drift": report.get("drift"),
                "drift_kind": report.get("drift_kind"), "encode": usage,
                "encode_bytes_per_second": logical / usage["wall_s"]}

    def mounted(self):
        return processes.Server([self.args.bin / "modelstored", "--config", str(self.work / "config.toml"), "--store",
                                 str(self.folder), "--mount", str(self.mountpoint), "--socket", str(self.work / "socket")],
                                str(self.mountpoint), "candidate", "modelstored")

    def remove(self):
        self.command("rm", "candidate", "--yes")
        self.command("prune")


def read_rate(folder):
    """Bytes a second of a first read of all its files."""
    began, total, buffer = time.monotonic(), 0, bytearray(1 << 20)
    for name in processes.files_of(folder):
        with open(name, "rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return total / (time.monotonic() - began)


def check_with(tool, folder, tokens):
    """The perplexity by another evaluation: a script with `ppl FOLDER TOKENS` that prints it."""
    return float(processes.run([sys.executable, tool, "ppl", folder, tokens])[1].split()[0])


def measure(row, scores, store, moments, args):
    if row.method == BITDELTA:
        candidate = BitDelta(scores.base, scores.finetune)
        stored = candidate.stored_bytes()
        return {"stored_bytes": stored, "ratio": store_size(args.finetune) / stored, **scores.of(candidate)}
    result = store.push(row, moments)
    try:
        with store.mounted():
            folder = store.mountpoint / "candidate"
            result["read_bytes_per_second"] = read_rate(folder)
            result.update(scores.of(llama_forward.Checkpoint(folder)))
            if args.check_with:
                result["perplexity_by_check"] = check_with(args.check_with, folder, args.tokens)
    finally:
        store.remove()
    return result


def store_size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_moments(args, work):
    if args.moments:
        return args.moments.resolve()
    out = work / "moments.safetensors"
    say("making the moments of the finetune")
    processes.run([args.python, ROOT / "python/modelstore_moments.py", args.finetune, args.calibration, out])
    return out


def run(args, result, keep):
    """Adds the rows that `result` lacks; keep(result) after each."""
    rows = [row for row in rows_of(args) if not any((r["method"], r["flags"]) == row and "failed" not in r
                                                    for r in result["rows"])]
    if not rows:
        return
    with tempfile.TemporaryDirectory(prefix="modelstore-compact.", dir=args.work) as work:
        work = pathlib.Path(work).resolve()
        tokens = llama_forward.load_tokens(args.tokens)
        scores = Scores(args.base, args.finetune, tokens)
        result.update(scores.pair, models=[args.base.name, args.finetune.name], bytes=store_size(args.finetune),
                      sequences=list(tokens.shape))
        moments = make_moments(args, work) if any("--moments M" in row.flags for row in rows) else None
        store = Store(args, work)
        for row in rows:
            try:
                measured = measure(row, scores, store, moments, args)
            except processes.Failure as error:
                measured = {"failed": str(error)}
            say(f"{row.method} {row.flags}: " + (measured.get("failed") or
                f"{measured['ratio']:.1f}x, gain {100 * measured['gain']:.1f} %, KL {measured['kl']:.5f}"))
            result["rows"] = [r for r in result["rows"] if (r["method"], r["flags"]) != row]
            result["rows"].append({**row._asdict(), **measured})
            keep(result)


def shown_flags(flags):
    return flags.replace(COMPACT, "").replace(" --moments M", "").strip()


def render(result):
    lines = [f"{result['models'][1]} on {result['models'][0]}: {result['bytes'] / 1e6:.0f} MB, perplexity "
             f"{result['perplexity_base']:.3f} -> {result['perplexity_finetune']:.3f} on {result['sequences'][0]} x "
             f"{result['sequences'][1]} tokens; KL of the base {result['kl_base']:.3f}.", "",
             "| method | flags | stored | ratio | gain kept | KL to the finetune, nats | drift |",
             "|---|---|---|---|---|---|---|"]
    for row in sorted((r for r in result["rows"] if "failed" not in r), key=lambda r: -r["gain"]):
        drift = f"{row['drift']:.4f} ({row['drift_kind']})" if row.get("drift") is not None else "-"
        stored = f"{row['stored_bytes'] / 1e6:.1f} MB" if row["stored_bytes"] >= 1e6 else f"{row['stored_bytes'] / 1e3:.0f} KB"
        flags = f"`{shown_flags(row['flags'])}`" if shown_flags(row["flags"]) else ""
        lines.append(f"| {row['method']} | {flags} | {stored} | {row['ratio']:.{0 if row['ratio'] >= 100 else 1}f}x | "
                     f"{100 * row['gain']:.1f} +- {100 * row['gain_error']:.1f} % | {row['kl']:.5f} | {drift} |")
    lines += [""] + [f"Failed: {row['method']} `{shown_flags(row['flags'])}`: {row['failed']}"
                     for row in result["rows"] if "failed" in row]
    return "\n".join(lines).rstrip()


def plot(result, path):
    try:
        import matplotlib
    except ImportError as error:
        raise processes.Failure(f"--plot: {error} (python3 -m pip install matplotlib)") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker
    styles = {CALIBRATED: ("#1769aa", "o-"), PLAIN: ("#5ba3d9", "s--"), ZIP_CALIBRATED: ("#d1495b", "D"),
              ZIP_PLAIN: ("#e79aa4", "D"), BITDELTA: ("#e0a458", "^")}
    figure, axes = pyplot.subplots(1, 2, figsize=(10.5, 4.2), dpi=120)
    methods = list(styles) + sorted({r["method"] for r in result["rows"]} - set(styles) - {EXACT})
    for method in methods:
        rows = sorted((r for r in result["rows"] if r["method"] == method and "failed" not in r),
                      key=lambda r: r["ratio"])
        if not rows:
            continue
        colour, style = styles.get(method, ("#57606a", "x"))
        ratios = [r["ratio"] for r in rows]
        axes[0].errorbar(ratios, [100 * r["gain"] for r in rows], [100 * r["gain_error"] for r in rows], fmt=style,
                         color=colour, label=method, markersize=5, capsize=2)
        axes[1].plot(ratios, [r["kl"] for r in rows], style, color=colour, label=method, markersize=5)
    for one, title, label in zip(axes, ("Quality kept", "Divergence from the finetune"),
                                 ("share of the gain in perplexity, %", "KL, nats a token")):
        one.set(xscale="log", xlabel="ratio: the finetune's bytes / what it adds to the store", title=title, ylabel=label)
        one.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        one.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
        one.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write_docs(path, marks, table):
    """Puts a table between the lines `marks`."""
    text, (begin_mark, end_mark) = path.read_text(encoding="utf-8"), marks
    begin, end = text.find(begin_mark), text.find(end_mark)
    if begin < 0 or end < begin:
        raise processes.Failure(f"{path}: expected the lines {begin_mark} and {end_mark}")
    path.write_text(text[:begin] + begin_mark + "\n\n" + table + "\n\n" + text[end:], encoding="utf-8")


def measure_and_show(args, measure_rows, table_of, draw, docs, image, marks):
    """Goes on with the rows of args.json by measure_rows(args, result, keep), and shows what there is then."""
    result = {"rows": []}
    if args.json.exists():
        result = json.loads(args.json.read_text(encoding="utf-8"))

    def keep(state):
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        part.replace(args.json)

    measure_rows(args, result, keep)
    print(table_of(result))
    if args.plot:
        draw(result, args.plot)
    if args.write_docs:
        write_docs(docs, marks, table_of(result))
        draw(result, image)


def make_llama(folder, seed, base=None):
    """A tiny Llama of random weights; with a base, that one's with a change of rank 2 and some noise."""
    random, hidden, inner, vocabulary = np.random.default_rng(seed), 64, 160, 640
    config = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": vocabulary}
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        for module, part in (("self_attn", {"q": (hidden, hidden), "k": (hidden // 2, hidden), "v": (hidden // 2, hidden),
                                            "o": (hidden, hidden)}),
                             ("mlp", {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)})):
            shapes.update({f"model.layers.{layer}.{module}.{name}_proj.weight": shape for name, shape in part.items()})
        for norm in ("input", "post_attention"):
            shapes[f"model.layers.{layer}.{norm}_layernorm.weight"] = (hidden,)
    header, data = {}, b""
    for name, shape in shapes.items():
        if base:
            change = random.normal(0, 0.02, (shape[0], 2)) @ random.normal(0, 1, (2, shape[-1])) if len(shape) == 2 else 0.01
            values = base[name] + change + random.normal(0, 0.002, shape)
        else:
            values = random.normal(0, 0.1, shape) if len(shape) == 2 else np.ones(shape)
        stored = (rounded(values.astype(np.float32), "BF16").view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def self_test(program):
    """Some rows on a tiny model; exits 77 where nothing can be mounted. The figures mean nothing, their relations do."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        say("skipped: /dev/fuse cannot be opened")
        return 77
    with tempfile.TemporaryDirectory(prefix="modelstore-compact-test.") as folder:
        folder = pathlib.Path(folder).resolve()
        make_llama(folder / "base", 1)
        make_llama(folder / "tuned", 2, llama_forward.Checkpoint(folder / "base"))
        np.save(folder / "tokens.npy", np.random.default_rng(3).integers(0, 640, (4, 32)))
        args = parse([*(str(folder / name) for name in ("base", "tuned", "tokens.npy", "tokens.npy")), "--json",
                      str(folder / "out.json"), "--bin", str(program), "--work", str(folder), "--ratios", "8",
                      "--row", "rank 1=--rank 1 --scale 1", "--row", "rank 2=--rank 2 --scale 1", "--row", "refused=--rank -1",
                      *(word for method in (EXACT, BITDELTA, ZIP_PLAIN, PLAIN, "rank", "refused") for word in ("--only", method))])
        result = {"rows": []}
        run(args, result, lambda _: None)
        rows = {row["method"]: row for row in result["rows"]}
        assert "failed" in rows.pop("refused"), result
        failed = {method: row["failed"] for method, row in rows.items() if "failed" in row}
        assert not failed and len(rows) == 6, failed
        assert rows[EXACT]["gain"] == 1 and rows[EXACT]["kl"] == 0, rows[EXACT]
        assert result["kl_base"] > rows["rank 1"]["kl"] > rows["rank 2"]["kl"] > 0, rows
        assert rows["rank 1"]["ratio"] > rows["rank 2"]["ratio"] > rows[EXACT]["ratio"] > 1, rows
        assert 0 < rows["rank 2"]["drift"] < rows["rank 1"]["drift"] < 1, rows
        assert rows["rank 1"]["drift_kind"] == "plain" and rows[PLAIN]["ratio"] >= 8, rows
        left = [path.name for path in folder.iterdir() if path.name.startswith("modelstore-compact.")]
        assert not left, left
    say("self-test passed")
    return 0


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, shown in (("base", "BASE"), ("finetune", "FINETUNE"), ("tokens", "EVAL.npy"), ("calibration", "CALIBRATION.npy")):
        parser.add_argument(name, metavar=shown, type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--json", required=True, type=pathlib.Path, metavar="FILE",
                        help="the results, written after every row; rows it has already are kept")
    parser.add_argument("--moments", type=pathlib.Path, metavar="FILE", help="instead of making them")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin",
                        help="folder of the programs (default: build/release/bin)")
    parser.add_argument("--python", default=sys.executable, help="a python with torch and transformers, for the moments")
    parser.add_argument("--ratios", type=lambda text: [float(r) for r in text.split(",")], default=RATIOS,
                        help=f"of the rows with --target-ratio (default: {','.join(map(str, RATIOS))})")
    parser.add_argument("--row", action="append", default=[], metavar="LABEL=FLAGS",
                        help="one more row: flags of the compact push; M stands for the file of moments")
    parser.add_argument("--only", action="append", metavar="WORD", help="methods with this word alone")
    parser.add_argument("--check-with", metavar="TOOL", help="a script `TOOL ppl FOLDER TOKENS`: its perplexity beside ours")
    parser.add_argument("--work", help="a folder for the store (default: the system's temporary folder)")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="writes the plot (PNG)")
    parser.add_argument("--write-docs", action="store_true", help=f"writes the table into {DOCS.name} and its plot")
    return parser.parse_args(arguments)


def main():
    processes.stop_on_signals(say)
    if sys.argv[1:2] == ["--self-test"]:
        return self_test(pathlib.Path(sys.argv[2]))
    args = parse(sys.argv[1:])
    try:
        measure_and_show(args, run, render, plot, DOCS, IMAGE, (BEGIN, END))
    except (processes.Failure, llama_forward.Unsupported, OSError, json.JSONDecodeError,
            subprocess.SubprocessError) as error:
        say(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
