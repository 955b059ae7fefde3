"""The results as one small SVG: how fast a finetune is read, and how much both models take. No library needed."""
from xml.sax.saxutils import escape

WIDTH, LEFT, BAR, GAP = 860, 200, 15, 5
PANEL_LEFT = (0, 430)
COLOURS = {"null": "#b8bec6", "modelstore": "#1769aa", "base decoded": "#5ba3d9",
           "lmz-pair": "#e0a458", "lmz-alone": "#e0a458", "other": "#e0a458"}


def text(x, y, content, size=12, anchor="start", weight="normal", fill="#24292f"):
    return (f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{fill}">{escape(content)}</text>')


def bars(x, y, width, title, groups):
    """One panel: groups are (heading, [(label, value, shown, colour)]); returns its elements and where it ends."""
    out = [text(x, y, title, 13, weight="bold")] if title else []
    y += 10 if title else 0
    largest = max((value for _, rows in groups for _, value, _, _ in rows), default=1) or 1
    room = width - LEFT + 60 - 75
    for heading, rows in groups:
        if heading:
            y += 20
            out.append(text(x, y, heading, 11, fill="#57606a"))
        y += 6
        for label, value, shown, colour in rows:
            length = max(1, room * value / largest)
            out.append(text(x + LEFT - 66, y + 12, label, 11, anchor="end"))
            out.append(f'<rect x="{x + LEFT - 60}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" '
                       f'fill="{colour}"/>')
            out.append(text(x + LEFT - 60 + length + 5, y + 12, shown, 11))
            y += BAR + GAP
    return out, y


def reading(rows):
    cell = {(r["server"], r["state"], r["access"]): r for r in rows if r["what"] == "finetune" and r["readers"] == 1}
    lines = [("null server (FUSE's limit)", "null", "cold", "null"),
             ("modelstore, base hot", "modelstore", "base decoded", "base decoded"),
             ("modelstore", "modelstore", "cold", "modelstore"), ("lmz, each alone", "lmz-alone", "cold", "lmz-alone"),
             ("lmz, one archive", "lmz-pair", "cold", "lmz-pair")]

    def share(row):
        return 1.0 if row["server"] == "null" else row["share_of_null"]["median"]

    return [(access, [(label, share(cell[server, state, access]), f"{100 * share(cell[server, state, access]):.0f} %",
                       COLOURS[colour]) for label, server, state, colour in lines if (server, state, access) in cell])
            for access in ("read", "mmap")]


def storing(rows):
    rows = sorted(rows, key=lambda r: r["total_bytes"])
    colour = {r["tool"]: COLOURS["modelstore" if r["tool"] == "modelstore" else "other"] for r in rows}
    return [("size, of the source", [(r["label"], r["share"], f"{100 * r['share']:.1f} %", colour[r["tool"]])
                                     for r in rows])]


def seconds(rows):
    rows = sorted(rows, key=lambda r: r["total_bytes"])
    colour = {r["tool"]: COLOURS["modelstore" if r["tool"] == "modelstore" else "other"] for r in rows}
    return [("time", [(r["label"], r["wall_s"]["median"], f"{r['wall_s']['median']:.1f} s", colour[r["tool"]])
                      for r in rows])]


def svg(result):
    out, bottom, column = [], 0, 0
    width = WIDTH // 2
    if result.get("mount"):
        title = "First read of a finetune, share of FUSE's limit"
        out, bottom = bars(16, 26, width - 20, title, reading(result["mount"]))
        column = 1
    if result.get("push"):
        x = 16 + column * PANEL_LEFT[1]
        elements, y = bars(x, 26, width - 20, "Base and finetune stored", storing(result["push"]))
        more, y = bars(x, y, width - 20, "", seconds(result["push"]))
        out, bottom, column = out + elements + more, max(bottom, y), column + 1
    models = result["models"]
    bottom += 22
    out.append(text(16, bottom, f"{models['finetune']['name']} on {models['base']['name']}, "
                    f"{result['machine']['cores']} cores, medians of {result['rounds']} rounds; "
                    "docs/benchmarks.md says what is measured", 10, fill="#57606a"))
    total = WIDTH if column > 1 else width
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{bottom + 12:.0f}" '
            f'viewBox="0 0 {total} {bottom + 12:.0f}" font-family="system-ui, sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(out) + "\n</svg>\n")
