// A store in a temporary folder and a process that serves it on a real FUSE mount (layer: tests).
//
// The server is a forked child; the test and its own children only read the mount. Requests to the server go over a
// pipe and return when they are done, so nothing sleeps. A server that hangs is killed by its alarm: the test then
// fails with ENOTCONN instead of hanging. Whatever happens, the folder is unmounted and removed. On a machine that
// cannot mount every test is skipped with the reason.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace modelstore {

// Runs `body` in a forked child and returns its exit code; 128 + n when signal n ended it.
int InChild(const std::function<int()>& body);

class MountTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  std::string store_dir() const { return root_ + "/store"; }
  std::string mountpoint() const { return root_ + "/mnt"; }
  std::string At(const std::string& path) const { return mountpoint() + "/" + path; }

  // A new empty folder, removed at the end as what is mounted on it is unmounted.
  std::string ScratchFolder(const std::string& name) const;

  // Writes a source file of model `model` and remembers what the mount must show.
  void WriteSource(const std::string& model, const std::string& path, const std::string& bytes, uint32_t mode = 0644);
  std::string SourceDir(const std::string& model) const;
  const std::map<std::string, std::string>& sources(const std::string& model) { return sources_[model]; }
  // Pseudo-random text of model weights: a safetensors file with bf16 tensors of `elems` elements; `noise_seed` 0: the
  // base itself, else a finetune of it; `rows`: of matrices, if not 0.
  static std::string Checkpoint(uint64_t seed, size_t elems, int tensors, uint64_t noise_seed = 0, size_t rows = 0);

  // Forks a server. Returns its error, "" when the mount stands.
  std::string TryServe(const std::string& mountpoint, uint64_t memory_budget_bytes = 256ull << 20);
  void Serve(uint64_t memory_budget_bytes = 256ull << 20);
  // Serves a store with models `base` (several files) and `team/ft` (a finetune of it).
  void ServeTwoModels();
  // One request: "push NAME [OWNER]", "compact NAME", "update NAME [OWNER]", "prune" (the tensors it removed), "rm
  // NAME", "rename FROM TO", "corrupt NAME PATH", "drop", "read_ahead", "device", "peak", "counts" (reads, bytes,
  // errors, open files), "accesses" (since asked last: model, path, process, pid, uid, size, bytes, any reads, errors,
  // any time), "ended" (returns when nothing is served any more), "stop", "wait" (… and the server ends). Returns "ok…"
  // or the error.
  std::string Ask(const std::string& request);
  // Sends without waiting for the answer, which Answer() returns.
  void Send(const std::string& request);
  std::string Answer();
  void SignalServer(int signal);
  // The server's exit code (128 + signal when killed).
  int WaitForServer();

  // The file through read(2) in pieces of `piece` bytes, or "errno N".
  static std::string ReadAll(const std::string& path, size_t piece = 1 << 16);
  // Makes the next reads of the file go to the server.
  static void DropPages(const std::string& path);

 private:
  std::string root_;
  std::map<std::string, std::map<std::string, std::string>> sources_;
  pid_t server_ = -1;
  int to_server_ = -1, from_server_ = -1;
};

}  // namespace modelstore
