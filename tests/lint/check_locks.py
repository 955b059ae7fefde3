#!/usr/bin/env python3
"""Checks the product's mutexes against the table of locks in docs/architecture.md.

usage: check_locks.py [ROOT]      prints one line a finding; exits 1 when any

Each mutex is a Mutex or SharedMutex of codec/support/mutex.h, a member of a named class and has a row; an annotation
says what it guards, or where none can a comment on its line. Each row names a mutex that exists. The column "may take"
gives the order: it has no circle, and two mutexes of one class say the same by MS_ACQUIRED_BEFORE or MS_ACQUIRED_AFTER,
which clang checks.
"""
import dataclasses
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from check_tree import folders_of, table

FOLDERS = ["codec", "catalog", "gpu", "fuse", "daemon", "cli"]
HOME = "codec/support/mutex.h"
DOCUMENT = "docs/architecture.md"
STANDARD = re.compile(r"\bstd::(?:recursive_|timed_|recursive_timed_|shared_|shared_timed_)?mutex\b|"
                      r"\bstd::condition_variable(?:_any)?\b|"
                      r"\bstd::(?:lock_guard|unique_lock|scoped_lock|shared_lock)\b")
CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)'", re.S)
CLASS = re.compile(r"\b(?:class|struct)\s+(?:MS_\w+(?:\([^()]*\))?\s+)*([\w:]+)(?:\s+final)?\s*(?::[^:].*)?$", re.S)
MUTEX = re.compile(r"^(?:\w+\s*:(?!:)\s*)*(?:mutable\s+|static\s+|inline\s+)*(?:Mutex|SharedMutex)\s+(\w+)\s*"
                   r"(?:MS_|[{=]|$)", re.S)
HIDDEN = re.compile(r"\b(?:Mutex|SharedMutex)\s+\w+\s*[,\[]|<[^<>;(){}]*\b(?:Mutex|SharedMutex)\b[^<>;(){}]*>")
ORDER = re.compile(r"MS_ACQUIRED_(BEFORE|AFTER)\(([^()]*)\)")


@dataclasses.dataclass
class MutexMember:
    path: str
    line: int
    scope: str  # "Class::Nested", "" for what is no member of a class
    member: str
    before: list  # members of the same class that are taken while it is held
    has_comment: bool = False  # on its line

    @property
    def name(self):
        return f"{self.scope}::{self.member}" if self.scope else self.member


def without_comments(text):
    """The text with comments, strings and preprocessor lines blanked; lines stay where they are."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, CODE.sub(blank, text), flags=re.M)


def mutexes_of(path, text):
    """The mutexes that a file declares, found by following its braces."""
    code, lines, found, scopes, start, parentheses = without_comments(text), text.splitlines(), [], [], 0, 0

    def declared(statement, end):
        match = MUTEX.match(statement.strip())
        if match is None:
            return
        classes = [scope for scope in scopes if scope is not None]
        inside = scopes and scopes[-1] is not None
        line = code.count("\n", 0, end)
        mutex = MutexMember(path, line + 1, "::".join(classes) if inside else "", match.group(1), [],
                            "//" in lines[line])
        found.append((mutex, ORDER.findall(statement)))

    for i, char in enumerate(code):
        if char == "(":
            parentheses += 1
        elif char == ")":
            parentheses -= 1
        elif parentheses == 0 and char in "{};":
            statement = code[start:i]
            if char == "{":
                head = CLASS.search(statement.strip())
                if head is None:
                    declared(statement, i)
                scopes.append(head.group(1) if head and "=" not in head.group() else None)
            elif char == "}":
                if scopes:
                    scopes.pop()
            else:
                declared(statement, i)
            start = i + 1
    members = {mutex.name: mutex for mutex, _ in found}
    for mutex, order in found:
        for kind, names in order:
            for other in (name.strip() for name in names.split(",")):
                target = members.get(f"{mutex.scope}::{other}")
                if kind == "BEFORE":
                    mutex.before.append(other)
                elif target is not None:
                    target.before.append(mutex.member)
    return [mutex for mutex, _ in found]


def product_files(root):
    for top in FOLDERS:
        for path in sorted((root / top).rglob("*")):
            if path.suffix in (".h", ".cc", ".cu") and path.is_file():
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def check_declarations(files):
    findings = []
    for path, text in files.items():
        code = without_comments(text)
        for match in HIDDEN.finditer(code):
            line = code.count("\n", 0, match.start()) + 1
            findings.append(f"{path}:{line}: one mutex a declaration, no containers of them: each has a name and a row")
        for match in STANDARD.finditer(code):
            line = code.count("\n", 0, match.start()) + 1
            findings.append(f"{path}:{line}: {match.group()}: take Mutex, SharedMutex, their locks or CondVar of "
                            f"{HOME}, which clang can check")
    return findings


def is_annotated(mutex, files):
    """Whether an annotation names it: in its file or the header or source beside it, or by an accessor elsewhere."""
    stem = mutex.path.rsplit(".", 1)[0]
    beside = re.compile(r"MS_(?:PT_)?(?:GUARDED_BY|REQUIRES|REQUIRES_SHARED)\([^;{]*\b" + mutex.member + r"\b")
    accessor = re.compile(r"MS_REQUIRES(?:_SHARED)?\([^;{]*\b" + mutex.member + r"\(\)")
    return any(accessor.search(text) or (path.rsplit(".", 1)[0] == stem and beside.search(text))
               for path, text in files.items())


def check_mutexes(mutexes, files):
    findings, by_name = [], {}
    for mutex in mutexes:
        where = f"{mutex.path}:{mutex.line}"
        if not mutex.scope:
            findings.append(f"{where}: {mutex.member} is no member of a named class: clang cannot tell what it guards")
            continue
        if mutex.name in by_name:
            findings.append(f"{where}: {mutex.name} is also in {by_name[mutex.name].path}: "
                            f"a name in {DOCUMENT} must say which")
        by_name[mutex.name] = mutex
        if not is_annotated(mutex, files) and not mutex.has_comment:
            findings.append(f"{where}: no MS_GUARDED_BY or MS_REQUIRES says what {mutex.name} guards, nor a comment")
    return findings, by_name


def check_table(by_name, rows):
    findings, order = [], {}
    for cell, _, _, may_take in rows:
        for name in folders_of(cell):
            if name in order:
                findings.append(f"{DOCUMENT}: {name} has two rows")
            order[name] = folders_of(may_take)
            if name not in by_name:
                findings.append(f"{DOCUMENT}: the row of {name} names no mutex of the code")
    for name, mutex in by_name.items():
        if name not in order:
            findings.append(f"{mutex.path}:{mutex.line}: {name} has no row in the table of locks of {DOCUMENT}")
    for name, others in order.items():
        for other in others:
            if other not in order:
                findings.append(f"{DOCUMENT}: {name} may take {other}, which has no row")
    return findings + check_order(by_name, order)


def check_order(by_name, order):
    findings = []
    for name, mutex in by_name.items():
        annotated = {f"{mutex.scope}::{other}" for other in mutex.before}
        stated = {other for other in order.get(name, []) if other.rsplit("::", 1)[0] == mutex.scope}
        for other in sorted(stated - annotated):
            findings.append(f"{mutex.path}:{mutex.line}: {DOCUMENT} says that {name} may take {other}: "
                            f"say so by MS_ACQUIRED_BEFORE")
        for other in sorted(annotated - stated):
            findings.append(f"{DOCUMENT}: the row of {name} does not say that it may take {other}, as the code does")

    done = set()

    def follow(name, path):
        if name in path:
            findings.append(f"{DOCUMENT}: a circle of locks: {' -> '.join(path[path.index(name):] + [name])}")
        elif name not in done:
            for other in order.get(name, []):
                follow(other, path + [name])
            done.add(name)

    for name in order:
        follow(name, [])
    return findings


def check(root):
    files = {path: text for path, text in product_files(root) if path != HOME}
    mutexes = [mutex for path, text in files.items() for mutex in mutexes_of(path, text)]
    findings, by_name = check_mutexes(mutexes, files)
    rows = table((root / DOCUMENT).read_text(encoding="utf-8"), "locks")
    return check_declarations(files) + findings + check_table(by_name, rows)


def main():
    default = pathlib.Path(__file__).resolve().parents[2]
    findings = check(pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else default)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
