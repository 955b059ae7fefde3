"""What the measurements say: medians, ratios within a round, tables for the terminal and for docs/benchmarks.md."""
import pathlib
import statistics

import processes

BEGIN, END = "<!-- results: written by tests/bench/compare.py --write-docs -->", "<!-- end of results -->"
LABELS = {"plain": "plain file", "null": "null server", "modelstore": "modelstore", "lmz-pair": "lmz, one archive",
          "lmz-alone": "lmz, each alone"}
ACCESS = {"read": "read", "mmap": "mmap", "random-pread": "4 KiB preads", "random-mmap": "4 KiB faults"}


def rate_of(row, result):
    """GB/s that each reader gets until the last one is done; for random accesses, their number a second."""
    if row["access"].startswith("random"):
        return result["accesses"] / result["seconds"]
    return result["bytes"] / row["readers"] / result["seconds"] / 1e9


def median_of(rounds, key):
    return statistics.median(r[key] for r in rounds)


def ratios(own, others, best=max):
    """The median of the ratios taken round by round, and the ratio of the best rounds, which need not be the same one:
    where others disturb single rounds, the best of the ratios would be that with the most disturbed denominator.
    best=min for times."""
    pairs = [a / b for a, b in zip(own, others)]
    return {"median": statistics.median(pairs), "best": best(own) / best(others)} if pairs else None


def summarise_mount(rows):
    seconds = {(r["server"], r["what"], r["access"], r["readers"], r["state"]): [x["seconds"] for x in r["rounds"]]
               for r in rows}
    rates = {(r["server"], r["what"], r["access"], r["readers"], r["state"]): [rate_of(r, x) for x in r["rounds"]]
             for r in rows}

    def against(row, server, state):
        other = rates.get((server, row["what"], row["access"], row["readers"], state))
        own = rates[row["server"], row["what"], row["access"], row["readers"], row["state"]]
        return ratios(own, other) if other else None

    def null_state(row):
        return "second read" if row["state"] == "second read" else "cold"

    out = []
    for row in rows:
        own = rates[row["server"], row["what"], row["access"], row["readers"], row["state"]]
        out.append({**{k: row[k] for k in ("server", "what", "state", "access", "readers")},
                    "unit": "1/s" if row["access"].startswith("random") else "GB/s",
                    "median": statistics.median(own), "best": max(own),
                    "share_of_null": against(row, "null", null_state(row)),
                    "seconds_of_one_reader": ratios(
                        [x["seconds"] for x in row["rounds"]],
                        seconds.get((row["server"], row["what"], row["access"], 1, row["state"]), []), min),
                    "share_of_plain": against(row, "plain", "page cache"),
                    **{k: median_of(row["rounds"], k) for k in ("seconds", "server_cpu_s", "client_cpu_s")},
                    **{k: max(r[k] for r in row["rounds"]) for k in ("server_rss_bytes", "client_rss_bytes")}})
    return out


def summarise_push(rows, logical):
    ours = next((r["rounds"] for r in rows if r["tool"] == "modelstore"), [])
    out = []
    for row in rows:
        rounds = row["rounds"]
        sizes = {k: rounds[0].get(k) for k in ("base_bytes", "finetune_bytes", "total_bytes")}
        out.append({"tool": row["tool"], "label": row["label"], **sizes, "share": sizes["total_bytes"] / logical,
                    "wall_s": {"median": median_of(rounds, "wall_s"), "best": min(r["wall_s"] for r in rounds)},
                    "cpu_s": median_of(rounds, "cpu_s"), "rss_bytes": max(r["rss_bytes"] for r in rounds),
                    "modelstore_wall_ratio": ratios([r["wall_s"] for r in ours], [r["wall_s"] for r in rounds], min),
                    "modelstore_cpu_ratio": ratios([r["cpu_s"] for r in ours], [r["cpu_s"] for r in rounds], min)})
    return out


def summarise_load(rows):
    plain = next(([x["seconds"] for x in r["rounds"]] for r in rows
                  if r["server"] == "plain" and r["state"] == "from disk"), [])
    out = []
    for row in rows:
        seconds = [r["seconds"] for r in row["rounds"]]
        out.append({"server": row["server"], "state": row["state"], "bytes": row["rounds"][0]["bytes"],
                    "seconds": {"median": statistics.median(seconds), "best": min(seconds)},
                    "seconds_of_plain_from_disk": ratios(seconds, plain, min),
                    "server_cpu_s": median_of(row["rounds"], "server_cpu_s"),
                    "client_cpu_s": median_of(row["rounds"], "cpu_s")})
    return out


def summarise(result):
    """Adds to what was measured (result["raw"]) what it says."""
    raw, logical = result["raw"], sum(model["bytes"] for model in result["models"].values())
    if raw.get("mount"):
        result["mount"] = summarise_mount(raw["mount"])
    if raw.get("push"):
        result["push"] = summarise_push(raw["push"], logical)
    if raw.get("load"):
        result["load"] = summarise_load(raw["load"])
    return result


def summary_rows(result):
    """(what, median, best, goal) of the figures that are asked for first. Goals depend on the processor."""
    mount = {(r["server"], r["what"], r["state"], r["access"], r["readers"]): r for r in result.get("mount", [])}
    goals = {"AVX-512": (">= 0.65", ">= 0.45"), "AVX2": (">= 0.55", ">= 0.35")}
    goals = goals.get(result["machine"]["target"], ("", ""))
    rows = []

    def add(text, ratio, goal, digits=".2f"):
        if ratio:
            rows.append((text, f"{ratio['median']:{digits}}", f"{ratio['best']:{digits}}", goal))

    def share(text, server, state, access, against, goal="", readers=1):
        add(text, mount.get((server, "finetune", state, access, readers), {}).get(against), goal)

    for access in ("read", "mmap"):
        share(f"cold {access} of the finetune, of the null server's rate; the base's blocks decoded", "modelstore",
              "base decoded", access, "share_of_null", goals[0])
        share(f"cold {access} of the finetune, of the null server's rate; nothing decoded", "modelstore", "cold",
              access, "share_of_null", goals[1])
        share("the same, lmz, each model alone", "lmz-alone", "cold", access, "share_of_null")
        share("the same, lmz, both in one archive", "lmz-pair", "cold", access, "share_of_null")
        share(f"second {access} of the finetune, of the plain file's rate", "modelstore", "second read", access,
              "share_of_plain", ">= 0.9")
        share("the same, null server", "null", "second read", access, "share_of_plain")
    for access in ("random-pread", "random-mmap"):
        add(f"cold random {ACCESS[access]} a second, one reader",
            mount.get(("modelstore", "finetune", "cold", access, 1)), ">= 2,000 a core", ",.0f")
    for access, verb in (("read", "reading"), ("mmap", "mapping")):
        share(f"16 processes {verb} the finetune at once, cold: time over one process's", "modelstore", "cold", access,
              "seconds_of_one_reader", "<= 1.3", readers=16)
        share("the same, null server", "null", "cold", access, "seconds_of_one_reader", readers=16)
    load = {(r["server"], r["state"]): r for r in result.get("load", [])}
    for state, where in (("from disk", "on disk"), ("page cache", "in the page cache")):
        row = load.get(("modelstore", state), {})
        add(f"loading the finetune with torch, cold, the store {where}: time over the plain file's from disk",
            row.get("seconds_of_plain_from_disk"), "reported")
    return rows


def table(header, rows, left=1):
    """A Markdown table, padded so that it reads as plain text too."""
    cells = [list(map(str, header)), *[list(map(str, row)) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row):
        return "| " + " | ".join(c.ljust(w) if i < left else c.rjust(w)
                                 for i, (c, w) in enumerate(zip(row, widths))) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def megabytes(size):
    return "" if size is None else f"{size / 1e6:,.1f}"


def mount_tables(rows):
    servers = [s for s in LABELS if any(r["server"] == s for r in rows)]
    cell = {(r["server"], r["what"], r["access"], r["readers"], r["state"]): r for r in rows}
    lines = [(r["what"], r["access"], r["readers"], r["state"]) for r in rows if r["server"] == "modelstore"]
    order = {"base": 0, "finetune": 1, **{a: i for i, a in enumerate(ACCESS)}, "cold": 0, "base decoded": 1,
             "second read": 2}
    lines.sort(key=lambda x: (order[x[0]], x[2] if x[1] in ("read", "mmap") else 99, order[x[3]], order[x[1]]))

    def row_of(server, what, access, readers, state):
        fixed = {"plain": "page cache"}.get(server, "cold" if server == "null" and state == "base decoded" else state)
        return cell.get((server, what, access, readers, fixed))

    def speed(row):
        if not row:
            return ""
        digits = ",.0f" if row["unit"] == "1/s" else ".2f"
        value = f"{row['median']:{digits}} · {row['best']:{digits}}"
        share = row["share_of_null"]
        return f"{value} ({share['median']:.2f})" if share and row["server"] not in ("null", "plain") else value

    def cost(row):
        return f"{row['server_cpu_s']:.2f} + {row['client_cpu_s']:.2f} s, {row['server_rss_bytes'] / 1e6:,.0f} MB" \
            if row else ""

    def name(what, access, readers, state):
        return f"{what}, {state}: {ACCESS[access]}" + (f", {readers} readers" if readers > 1 else "")

    def matrix(render, columns):
        return table(["", *[LABELS[s] for s in columns]],
                     [[name(*line), *[render(row_of(s, *line)) for s in columns]] for line in lines])

    return matrix(speed, servers), matrix(cost, [s for s in servers if s != "plain"])


def render(result):
    """The results as Markdown, which is also what the terminal shows."""
    machine, models = result["machine"], result["models"]
    parts = [f"{result['version']} on a machine with {machine['cores']} cores "
             f"({machine['target']}), Linux {machine['linux']}; {models['base']['name']} "
             f"({megabytes(models['base']['bytes'])} MB) and its finetune {models['finetune']['name']} "
             f"({megabytes(models['finetune']['bytes'])} MB); medians of "
             f"{result['rounds']} rounds in turn; load average before the run {result['load_average']:.1f}. Peers: " +
             (", ".join(f"{k} {v}" for k, v in sorted(result["peers"].items())) or "none") + "."]
    summary = summary_rows(result)
    if summary:
        parts += ["### In short", "Ratios: the median of the ratios round by round, and the ratio of the best rounds.",
                  table(["", "median", "best", "goal"], summary)]
    if "mount" in result:
        speeds, costs = mount_tables(result["mount"])
        parts += ["### Reading", "GB/s that each reader gets, or 4 KiB accesses a second: median · best (share of the "
                  "null server's rate in the same state, median of the rounds' ratios).", speeds,
                  "CPU seconds of the server + of the readers for it, and the server's peak memory:", costs]
    if "push" in result:
        rows = [[r["label"], megabytes(r["base_bytes"]), megabytes(r["finetune_bytes"]), megabytes(r["total_bytes"]),
                 f"{100 * r['share']:.1f} %", f"{r['wall_s']['median']:.2f}", f"{r['wall_s']['best']:.2f}",
                 f"{r['cpu_s']:.2f}", f"{r['rss_bytes'] / 1e6:,.0f}",
                 f"{r['modelstore_wall_ratio']['median']:.2f}" if r["modelstore_wall_ratio"] else ""]
                for r in sorted(result["push"], key=lambda r: r["total_bytes"])]
        parts += ["### Storing both models", table(["", "base, MB", "finetune, MB", "both, MB", "of the source",
                                                    "seconds", "best", "CPU s", "peak MB", "modelstore's time / its"],
                                                   rows)]
    if "load" in result:
        rows = [[LABELS[r["server"]], r["state"], f"{r['seconds']['median']:.2f}", f"{r['seconds']['best']:.2f}",
                 f"{r['bytes'] / r['seconds']['median'] / 1e9:.2f}",
                 f"{r['server_cpu_s']:.2f} + {r['client_cpu_s']:.2f}",
                 f"{r['seconds_of_plain_from_disk']['median']:.2f}" if r["seconds_of_plain_from_disk"] else ""]
                for r in sorted(result["load"], key=lambda r: (r["state"], list(LABELS).index(r["server"])))]
        parts += ["### Loading the finetune with safetensors and torch",
                  table(["", "source or store", "seconds", "best", "GB/s", "CPU s, server + client",
                         "of the plain file from disk"], rows, left=2)]
    if result["missing"]:
        parts += ["Left out:", "\n".join(f"- {line}" for line in result["missing"])]
    return "\n\n".join(parts)


def write_docs(path, result):
    """Replaces what is between the markers."""
    path = pathlib.Path(path)
    text = path.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise processes.Failure(f"{path}: expected the lines {BEGIN} and {END}")
    path.write_text(text[:begin] + BEGIN + "\n\n" + render(result) + "\n\n" + text[end:], encoding="utf-8")
