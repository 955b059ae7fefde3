#!/usr/bin/env python3
"""check_locks must find each kind of breach: plants one at a time in a small tree and reads the finding."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
import check_locks

TABLE = """# x
<!-- locks -->
| lock | guards | never held while | may take |
|---|---|---|---|
| `Box::mutex_` | a box | - | `Box::Impl::inner_mutex`, `Pool::mutex_` |
| `Box::Impl::inner_mutex` | more | - | `Box::Impl::last_mutex` |
| `Box::Impl::last_mutex` | most | - | - |
| `Pool::mutex_` | a pool | - | - |
"""
BOX = """// Box. std::mutex is only named here.
#include <mutex>
class Box final : public Base<Thing> {
 public:
  void Set() { if (a < b) return; }
 private:
  mutable Mutex mutex_;
  int value_ MS_GUARDED_BY(mutex_) = 0;
  const char* text_ = "std::mutex {";
};
struct Box::Impl {
  Impl() : one{1}, two(2) {}
  Mutex inner_mutex MS_ACQUIRED_BEFORE(last_mutex);
  Mutex last_mutex;
  int a MS_GUARDED_BY(inner_mutex) = 0, b MS_GUARDED_BY(last_mutex) = 0;
};
"""
POOL = """class MS_CAPABILITY("pool") Pool {
  void Work() MS_REQUIRES(mutex_);
  Mutex mutex_;
};
"""


class CheckLocks(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.table, self.box, self.pool = TABLE, BOX, POOL

    def findings(self):
        files = {"docs/architecture.md": self.table, "codec/box.cc": self.box, "cli/pool.h": self.pool}
        for path, text in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        return check_locks.check(self.root)

    def expect(self, *parts):
        findings = self.findings()
        self.assertEqual(len(findings), 1, findings)
        for part in parts:
            self.assertIn(part, findings[0])

    def change(self, name, old, new):
        text = getattr(self, name)
        self.assertIn(old, text)
        setattr(self, name, text.replace(old, new, 1))

    def test_good(self):
        self.assertEqual(self.findings(), [])

    def test_order_of_the_code_that_the_table_does_not_state(self):
        self.change("table", "| more | - | `Box::Impl::last_mutex` |", "| more | - | - |")
        self.expect("the row of Box::Impl::inner_mutex does not say that it may take Box::Impl::last_mutex")

    def test_order_of_the_table_that_the_code_does_not_state(self):
        self.change("box", " MS_ACQUIRED_BEFORE(last_mutex)", "")
        self.expect("codec/box.cc:13", "Box::Impl::inner_mutex may take Box::Impl::last_mutex", "MS_ACQUIRED_BEFORE")

    def test_order_stated_from_the_other_end(self):
        self.change("box", " MS_ACQUIRED_BEFORE(last_mutex)", "")
        self.change("box", "Mutex last_mutex;", "Mutex last_mutex MS_ACQUIRED_AFTER(inner_mutex);")
        self.assertEqual(self.findings(), [])

    def test_circle(self):
        self.change("table", "| a pool | - | - |", "| a pool | - | `Box::mutex_` |")
        self.expect("a circle of locks", "Box::mutex_ -> Pool::mutex_ -> Box::mutex_")

    def test_mutex_without_a_row(self):
        self.change("box", "int a MS", "SharedMutex new_mutex;\n  int c MS_GUARDED_BY(new_mutex) = 0, a MS")
        self.expect("codec/box.cc:15", "Box::Impl::new_mutex has no row")

    def test_row_without_a_mutex(self):
        self.change("pool", "  Mutex mutex_;\n", "")
        self.expect("the row of Pool::mutex_ names no mutex")

    def test_two_rows(self):
        self.table += "| `Pool::mutex_` | again | - | - |\n"
        self.expect("Pool::mutex_ has two rows")

    def test_row_that_names_what_has_none(self):
        self.change("table", "| a pool | - | - |", "| a pool | - | `Gone::mutex_` |")
        self.expect("Pool::mutex_ may take Gone::mutex_, which has no row")

    def test_mutex_that_guards_nothing(self):
        self.change("box", " MS_GUARDED_BY(mutex_) = 0", " = 0")
        self.expect("codec/box.cc:7", "says what Box::mutex_ guards")
        self.change("box", "mutable Mutex mutex_;", "mutable Mutex mutex_;  // of a file")
        self.assertEqual(self.findings(), [])

    def test_twin_names(self):
        self.pool += self.pool
        self.expect("cli/pool.h:7", "Pool::mutex_ is also in cli/pool.h")

    def test_local_mutex(self):
        self.box += "void F() {\n  Mutex merging;\n}\n"
        self.expect("codec/box.cc:18", "merging is no member of a named class")

    def test_mutexes_that_the_table_cannot_name(self):
        self.box += "class Many {\n  Mutex one, two;\n};\n"
        self.expect("codec/box.cc:18", "one mutex a declaration")

    def test_mutex_of_the_standard_library(self):
        self.box += "std::mutex plain;\n"
        self.expect("codec/box.cc:17: std::mutex")

    def test_lock_of_the_standard_library(self):
        self.pool += "void F() { const std::scoped_lock lock(a, b); }\n"
        self.expect("cli/pool.h:5: std::scoped_lock")


if __name__ == "__main__":
    unittest.main()
