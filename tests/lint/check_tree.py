#!/usr/bin/env python3
"""Checks the source tree against the tables in docs/architecture.md: who may include whom, where libraries live.

usage: check_tree.py [ROOT]      prints one line a finding with the reason for the broken rule; exits 1 when any
"""
import collections
import pathlib
import re
import sys

SOURCE_FOLDERS = ["codec", "catalog", "gpu", "fuse", "daemon", "cli", "python", "tests"]
MAX_LINES = 900
MAX_README_LINES = 20
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+(?:"([^"]+)"|<([^>]+)>)', re.M)


def table(text, marker):
    """Rows of the Markdown table that follows `<!-- marker -->`, without its header; code ticks removed."""
    start = text.find(f"<!-- {marker} -->")
    if start < 0:
        raise SystemExit(f"docs/architecture.md: the marker <!-- {marker} --> is missing")
    rows = []
    for line in text[start:].splitlines()[1:]:
        if not line.startswith("|"):
            if rows:
                break
            continue
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows[2:]


def folders_of(cell):
    return [] if cell in ("", "-") else cell.replace(",", " ").split()


class Layers:
    """Folder -> folders it may include (its row's, and what those may include) and the reason."""

    def __init__(self, rows):
        self.direct = {row[0]: folders_of(row[1]) for row in rows}
        self.reason = {row[0]: row[2] for row in rows}
        for folder, others in self.direct.items():
            for other in others:
                if other not in self.direct:
                    raise SystemExit(f"docs/architecture.md: {folder} may include {other}, which has no row")

    def allowed(self, folder):
        seen, todo = set(), [folder]
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += self.direct[here]
        return seen

    def of(self, path):
        """The row that a file belongs to: its folder's or the nearest one above."""
        for parent in pathlib.PurePosixPath(path).parents:
            if str(parent) in self.direct:
                return str(parent)
        return None


def sources(root):
    for top in SOURCE_FOLDERS:
        for path in sorted((root / top).rglob("*")):
            if path.suffix in (".h", ".cc", ".cu", ".py", ".sh") and path.is_file():
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")
    for path in sorted((root / "scripts").glob("*")):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def check_includes(files, layers, libraries, root):
    findings = []
    for path, text in files:
        if not path.endswith((".h", ".cc", ".cu")):
            continue
        layer = layers.of(path)
        if layer is None and not path.startswith("tests/"):
            findings.append(f"{path}: its folder has no row in the layer table of docs/architecture.md")
            continue
        for match in INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            own, system = match.groups()
            if own is not None:
                findings += own_include(path, line, own, layer, layers, root)
            else:
                findings += library_include(path, line, system, layer, libraries)
    return findings


def own_include(path, line, own, layer, layers, root):
    if not (root / own).is_file():
        return [f'{path}:{line}: "{own}" is not a file; include paths start at the repository root']
    target = layers.of(own)
    if layer is None:
        return []
    if target is None or target not in layers.allowed(layer):
        return [f'{path}:{line}: {layer} may not include "{own}": {layers.reason[layer]}']
    return []


def library_include(path, line, system, layer, libraries):
    """The first row that fits decides: a header with a rule of its own stands before its library."""
    for prefixes, homes, where, reason in libraries:
        if not any(system.startswith(prefix) for prefix in folders_of(prefixes)):
            continue
        if where == ".cc" and path.endswith(".h"):
            return [f"{path}:{line}: <{system}> is not for headers: {reason}"]
        if layer is not None and layer not in folders_of(homes):
            return [f"{path}:{line}: <{system}> belongs to {homes}: {reason}"]
        return []
    return []


def check_names(files):
    by_name = collections.defaultdict(list)
    for path, _ in files:
        by_name[path.rsplit("/", 1)[-1]].append(path)
    return [f"{' and '.join(paths)}: file names are unique, so that a name in a message or a review says which file"
            for paths in by_name.values() if len(paths) > 1]


def check_text(files):
    findings = []
    for path, text in files:
        lines = text.count("\n")
        if lines > MAX_LINES:
            findings.append(f"{path}: {lines} lines; more than {MAX_LINES} means more than one concern")
        if path.endswith(".h"):
            if not text.startswith("//"):
                findings.append(f"{path}: a header opens with its purpose, layer and thread safety")
            if "#pragma once" not in text:
                findings.append(f"{path}: #pragma once is missing")
        if path.endswith((".h", ".cc")) and re.search(r"^\s*using namespace std\b", text, re.M):
            findings.append(f"{path}: using namespace std hides where a name comes from")
        if not path.startswith("tests/lint/") and re.search(r"\b(TO" r"DO|FIX" r"ME)\b", text):
            findings.append(f"{path}: unfinished work belongs in the tracker, not in the tree")
    return findings


def check_leaves(root, layers):
    findings = []
    for folder in layers.direct:
        if not (root / folder).is_dir():
            findings.append(f"docs/architecture.md: {folder} is in the layer table and not in the tree")
            continue
        readme = root / folder / "README.md"
        if not readme.is_file():
            findings.append(f"{folder}: a leaf has a README.md of at most {MAX_README_LINES} lines")
        elif len(readme.read_text(encoding="utf-8").splitlines()) > MAX_README_LINES:
            findings.append(f"{folder}/README.md: more than {MAX_README_LINES} lines; the rest belongs in docs/")
        if not (root / folder / "CMakeLists.txt").is_file():
            findings.append(f"{folder}: a leaf is one CMake target and has a CMakeLists.txt")
    return findings


def check(root):
    text = (root / "docs/architecture.md").read_text(encoding="utf-8")
    layers = Layers(table(text, "layers"))
    files = list(sources(root))
    return (check_includes(files, layers, table(text, "libraries"), root) + check_names(files) + check_text(files) +
            check_leaves(root, layers))


def main():
    default = pathlib.Path(__file__).resolve().parents[2]
    findings = check(pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else default)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
