// What the daemon sends on one connection (layer: daemon/service).
//
// Thread-safe: workers report progress while the job's own thread sends the rest. A client that does not take what it
// is sent within kAnswerTimeoutMs, or takes all it is sent too slowly (Pace), is given up: `on_gone` is called (once a
// failure), everything later fails too.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "catalog/write/export.h"
#include "codec/support/bytes.h"
#include "codec/support/job_control.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"
#include "daemon/protocol/wire.h"

namespace modelstore {

inline constexpr int kAnswerTimeoutMs = 30'000;

// How long one client may keep the daemon waiting: a minute, and a second more for each MiB that it took since; what it
// took earlier than that does not count. What the daemon itself needs between two frames is not the client's.
class Pace {
 public:
  // For the next frame.
  int TimeoutMs() const;
  void Sent(std::chrono::nanoseconds waited, size_t bytes);

 private:
  static constexpr std::chrono::nanoseconds kStock = std::chrono::seconds(60);
  static constexpr uint64_t kBytesPerSecond = 1u << 20;

  std::chrono::nanoseconds left_ = kStock;
};

class AnswerStream {
 public:
  AnswerStream(int socket, std::function<void()> on_gone) : socket_(socket), on_gone_(std::move(on_gone)) {}

  // At most ten a second; dropped when the client does not read.
  void Progress(const JobProgress& progress);
  void Warning(std::string_view message);
  // `document`: JSON. Ends the answer.
  Status SendResult(std::string_view document);
  Status SendError(const Status& error);
  Status SendJson(std::string_view json);
  Status SendData(ByteSpan bytes);

  // Cuts the connection when the client has kept a frame waiting for longer than `limit`. Never waits.
  void CutIfStalled(std::chrono::nanoseconds limit) const;

  uint64_t sent_bytes() const { return sent_bytes_.load(std::memory_order_relaxed); }

 private:
  Status Send(FrameKind kind, ByteSpan payload);
  // Calls `send`; false: it sent nothing, which is no failure.
  Status Noted(size_t bytes, const std::function<Result<bool>(int timeout_ms)>& send) MS_REQUIRES(mutex_);

  const int socket_;
  const std::function<void()> on_gone_;
  std::atomic<int64_t> next_progress_ns_{0};
  std::atomic<uint64_t> sent_bytes_{0};
  std::atomic<int64_t> sending_since_ns_{0};  // 0: nothing is being sent
  Mutex mutex_;                               // one frame after the other
  Pace pace_ MS_GUARDED_BY(mutex_);
  Status failure_ MS_GUARDED_BY(mutex_);
};

// Sends an export as frames.
class FrameSink final : public ExportSink {
 public:
  explicit FrameSink(AnswerStream* answers) : answers_(answers) {}
  Status Begin(const std::vector<ModelFile>& files) override;
  Status BeginFile(size_t index) override;
  Status Write(ByteSpan bytes) override;
  Status EndFile() override;

 private:
  AnswerStream* const answers_;
  size_t index_ = 0;
};

}  // namespace modelstore
