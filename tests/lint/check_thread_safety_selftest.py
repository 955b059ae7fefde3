#!/usr/bin/env python3
"""check_thread_safety must see each kind of breach, planted one at a time. Exits 77 where there is no clang."""
import json
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
import check_thread_safety

HEADER = pathlib.Path(check_thread_safety.ROOT, "codec/support/mutex.h")
CLASS = """#include "codec/support/mutex.h"
namespace modelstore {
class Box {
 public:
  void Set(int value);
 private:
  void SetHeld(int value) MS_REQUIRES(mutex_) { value_ = value; }
  Mutex mutex_ MS_ACQUIRED_BEFORE(inner_);
  Mutex inner_;
  CondVar changed_;
  int value_ MS_GUARDED_BY(mutex_) = 0;
  SharedMutex shared_;
  int many_ MS_GUARDED_BY(shared_) = 0;
};
void Box::Set(int value) {
  %s
}
}  // namespace modelstore
"""


class CheckThreadSafety(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.checker = check_thread_safety.Checker(check_thread_safety.find_clang(), folder.name)

    def findings(self, body):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder).resolve()
            (root / "codec/support").mkdir(parents=True)
            shutil.copy(HEADER, root / "codec/support/mutex.h")
            (root / "codec/box.cc").write_text(CLASS % body)
            # Of another compiler, with its precompiled header: only what the code means is taken.
            command = f"g++ -I{root} -O2 -fno-such-flag -include {root}/pch.hxx -std=gnu++20 -o x.o -c codec/box.cc"
            (root / "compile_commands.json").write_text(
                json.dumps([{"directory": str(root), "command": command, "file": "codec/box.cc"}]))
            count, findings = self.checker.check(root, root)
            self.assertEqual(count, 1)
            return "".join(findings)

    def test_good(self):
        self.assertEqual(self.findings("const MutexLock lock(mutex_); while (value_ != 0) changed_.Wait(mutex_);"
                                       " SetHeld(value); const MutexLock inner(inner_);"), "")
        self.assertEqual(self.findings("MutexLock lock(mutex_); lock.Unlock(); lock.Lock(); value_ = value;"), "")
        self.assertEqual(self.findings("if (!mutex_.TryLock()) return; const MutexLock lock(mutex_, std::adopt_lock);"
                                       " value_ = value;"), "")
        self.assertEqual(self.findings("{ const ReaderLock lock(shared_); if (many_ == value) return; }"
                                       " const WriterLock lock(shared_); many_ = value;"), "")

    def test_write_without_the_mutex(self):
        self.assertIn("writing variable 'value_' requires holding mutex 'mutex_'", self.findings("value_ = value;"))

    def test_write_after_unlock(self):
        self.assertIn("requires holding mutex 'mutex_'",
                      self.findings("MutexLock lock(mutex_); lock.Unlock(); value_ = value;"))

    def test_call_without_the_mutex(self):
        self.assertIn("calling function 'SetHeld' requires holding mutex 'mutex_'", self.findings("SetHeld(value);"))

    def test_wait_without_the_mutex(self):
        self.assertIn("calling function 'Wait' requires holding mutex 'mutex_'",
                      self.findings("changed_.Wait(mutex_);"))

    def test_write_by_a_reader(self):
        self.assertIn("requires holding shared mutex 'shared_' exclusively",
                      self.findings("const ReaderLock lock(shared_); many_ = value;"))

    def test_lock_twice(self):
        self.assertIn("acquiring mutex 'mutex_' that is already held",
                      self.findings("const MutexLock lock(mutex_); const MutexLock again(mutex_);"))

    def test_wrong_order(self):
        self.assertIn("mutex 'mutex_' must be acquired before 'inner_'",
                      self.findings("const MutexLock inner(inner_); const MutexLock lock(mutex_);"))

    def test_ignored_try(self):
        self.assertIn("requires holding mutex 'mutex_'", self.findings("(void)mutex_.TryLock(); value_ = value;"))


if __name__ == "__main__":
    if check_thread_safety.find_clang() is None:
        print("skipped: clang is not installed (apt-get install clang)")
        sys.exit(77)
    unittest.main()
