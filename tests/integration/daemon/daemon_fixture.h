// A real modelstored on a temporary store, mount and socket, and clients that speak to it frame by frame (layer:
// tests).
//
// The daemon says when it is ready (sd_notify), so nothing sleeps. Whatever happens it is killed, its mount taken away
// and the folder removed. Where nothing can be mounted the daemon runs without a mount and the tests that read it skip.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "codec/support/status.h"
#include "daemon/protocol/wire.h"

namespace modelstore {

inline constexpr int kPatienceMs = 120'000;  // never waited for unless something is broken

struct DaemonOptions {
  std::string config{};          // TOML lines beside store, mount and socket
  uid_t uid = 0;                 // of the daemon, when the test runs as root
  bool activate = false;         // as systemd does: the socket is made here and passed
  uint64_t watchdog_usec = 0;    // as systemd asks for signs of life; 0: it does not
  uint64_t max_open_files = 0;   // 0: as the test has
  bool without_streams = false;  // standard input, output and error are closed
  uint64_t max_threads = 0;      // of `uid`; 0: as many as it likes
};

// A JSON object that a daemon sent; data frames are {"data": BYTES}, the end of the connection is {"closed": WHY}.
class Reply {
 public:
  explicit Reply(std::string json) : json_(std::move(json)) {}
  const std::string& json() const { return json_; }
  bool Has(const std::string& key) const;
  // The value at a JSON pointer ("/result/models/0/name"): strings as they are, else as JSON; "" when there is none.
  std::string At(const std::string& pointer) const;
  size_t SizeOf(const std::string& pointer) const;
  // "" for a result, else the error's code or "closed".
  std::string Code() const;
  std::string Message() const { return At("/error/message"); }

 private:
  std::string json_;
};
std::ostream& operator<<(std::ostream& out, const Reply& reply);

// One connection. Parameters are the text of a JSON object.
class RawClient {
 public:
  explicit RawClient(const std::string& socket_path);
  ~RawClient() { Close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  void Close();
  void SendBytes(std::string_view bytes) const;
  Status SendJson(const std::string& text, std::vector<int> fds = {}) const;
  Status SendRequest(const std::string& request, const std::string& parameters, uint64_t files = 0) const;
  // A push of files with the names that they have in the model.
  void SendPush(const std::string& name, const std::vector<std::pair<std::string, int>>& files,
                const std::string& more = "{}") const;
  Reply Next() const;
  // The first frame that has `key`, or the last one.
  Reply Until(const std::string& key) const;
  // The frame with the result or the error.
  Reply Answer() const;
  // Waits until the push codes its files.
  void AwaitStoring() const;

 private:
  int fd_ = -1;
};

class DaemonTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  const std::string& root() const { return root_; }
  std::string store() const { return root_ + "/store"; }
  std::string mountpoint() const { return root_ + "/mnt"; }
  std::string socket() const { return root_ + "/run/s"; }
  bool can_mount() const { return can_mount_; }

  void StartDaemon(const DaemonOptions& options = {});
  // Where it may fail to start: true when it is ready, false when it ended (WaitForDaemon then says how).
  bool TryToStartDaemon(const DaemonOptions& options);
  // Waits for what the daemon tells systemd, in order.
  void AwaitNotification(const std::string& text);
  void Signal(int number) const;
  // Its exit code, 128 + n when signal n ended it.
  int WaitForDaemon();
  pid_t pid() const { return pid_; }

  // One whole request.
  Reply Call(const std::string& request, const std::string& parameters = "{}") const;
  Reply Push(const std::string& name, const std::string& file, const std::string& more = "{}") const;
  std::vector<std::string> ModelNames() const;
  // Waits until no request but its own is being served.
  void AwaitIdle() const;
  // No model but these, everything decodes, nothing is left to prune.
  void ExpectWhole(const std::vector<std::string>& models) const;

  // Writes a file of pseudo-random bytes and returns its path.
  std::string WriteFile(const std::string& name, size_t bytes, uint64_t seed = 1) const;
  // What can be read of it: less when its daemon is killed meanwhile.
  static std::string ReadFile(const std::string& path);

 private:
  void SpawnDaemon(const DaemonOptions& options);

  std::string root_;
  bool can_mount_ = false;
  pid_t pid_ = -1;
  int notify_ = -1;
};

// Runs `body` in a forked child as that user and returns its exit code; 128 + n when signal n ended it.
int AsUser(uid_t uid, gid_t gid, const std::vector<gid_t>& groups, const std::function<int()>& body);

}  // namespace modelstore
