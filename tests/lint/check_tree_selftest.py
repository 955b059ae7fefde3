#!/usr/bin/env python3
"""check_tree must find each kind of breach: plants one at a time in a small tree and reads the finding."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
import check_tree

ARCHITECTURE = """# x
<!-- layers -->
| folder | may include | reason |
|---|---|---|
| `codec/low` | - | the ground floor |
| `codec/high` | `codec/low` | reason high |
| `cli` | `codec/high` | reason cli |

<!-- libraries -->
| headers | home | where | reason |
|---|---|---|---|
| `rocksdb/` | `codec/low` | any | one user |
| `nlohmann/names.hpp` | `codec/high` | any | quick |
| `nlohmann/` | `cli`, `codec/high` | .cc | slow |
"""
HEADER = "// Purpose.\n#pragma once\n"


class CheckTree(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)
        self.write("docs/architecture.md", ARCHITECTURE)
        for leaf in ("codec/low", "codec/high", "cli"):
            self.write(f"{leaf}/README.md", "# leaf\n")
            self.write(f"{leaf}/CMakeLists.txt", "\n")
        self.write("codec/low/low.h", HEADER)
        self.write("codec/low/low.cc", '#include "codec/low/low.h"\n#include <rocksdb/db.h>\n')
        self.write("codec/high/high.h", HEADER + '#include "codec/low/low.h"\n')
        self.write("codec/high/high.cc", "#include <nlohmann/json.hpp>\n")
        self.write("cli/main.cc", '#include "codec/low/low.h"\n#include <vector>\n')
        self.write("tests/unit/a_test.cc", '#include "codec/low/low.h"\n#include <nlohmann/json.hpp>\n')

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def expect(self, *parts):
        findings = check_tree.check(self.root)
        self.assertEqual(len(findings), 1, findings)
        for part in parts:
            self.assertIn(part, findings[0])

    def test_good_tree(self):
        self.assertEqual(check_tree.check(self.root), [])

    def test_upward_include_gives_the_reason(self):
        self.write("codec/low/bad.cc", '\n#include "codec/high/high.h"\n')
        self.expect("codec/low/bad.cc:2", "codec/low may not include", "the ground floor")

    def test_sideways_private_include(self):
        self.write("codec/high/bad.cc", '#include "cli/x.h"\n')
        self.write("cli/x.h", HEADER)
        self.expect("codec/high/bad.cc:1", "reason high")

    def test_include_not_from_the_root(self):
        self.write("codec/high/bad.cc", '#include "high.h"\n')
        self.expect("start at the repository root")

    def test_library_outside_its_home(self):
        self.write("codec/high/bad.cc", "#include <rocksdb/slice.h>\n")
        self.expect("belongs to codec/low", "one user")

    def test_library_in_a_header(self):
        self.write("codec/high/bad.h", HEADER + "#include <nlohmann/json_fwd.hpp>\n")
        self.expect("not for headers", "slow")

    def test_the_first_row_that_fits_decides(self):
        self.write("codec/high/good.h", HEADER + "#include <nlohmann/names.hpp>\n")
        self.assertEqual(check_tree.check(self.root), [])

    def test_folder_without_a_row(self):
        self.write("codec/new/new.cc", "\n")
        self.expect("codec/new/new.cc", "no row")

    def test_leaf_without_readme(self):
        (self.root / "cli/README.md").unlink()
        self.expect("cli", "README.md")

    def test_long_readme(self):
        self.write("cli/README.md", "x\n" * 21)
        self.expect("cli/README.md", "20 lines")

    def test_twin_names(self):
        self.write("cli/low.cc", "\n")
        self.expect("file names are unique", "cli/low.cc", "codec/low/low.cc")

    def test_long_file(self):
        self.write("cli/long.cc", "\n" * 901)
        self.expect("cli/long.cc", "900")

    def test_header_without_purpose(self):
        self.write("cli/x.h", "#pragma once\n")
        self.expect("cli/x.h", "purpose")

    def test_using_namespace_std(self):
        self.write("cli/x.cc", "using namespace std;\n")
        self.expect("cli/x.cc", "using namespace std")


if __name__ == "__main__":
    unittest.main()
