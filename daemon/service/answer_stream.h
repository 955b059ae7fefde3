// What the daemon sends on one connection (layer: daemon/service).
//
// Thread-safe: workers report progress while the job's own thread sends the rest. A client that does not take what it
// is sent within kAnswerTimeoutMs is given up: `on_gone` is called (once a failure), everything later fails too.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "catalog/write/export.h"
#include "codec/support/bytes.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"
#include "daemon/protocol/wire.h"

namespace modelstore {

inline constexpr int kAnswerTimeoutMs = 30'000;

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

  uint64_t sent_bytes() const { return sent_bytes_.load(std::memory_order_relaxed); }

 private:
  Status Send(FrameKind kind, ByteSpan payload);
  Status Noted(Status status, size_t bytes);

  const int socket_;
  const std::function<void()> on_gone_;
  std::atomic<int64_t> next_progress_ns_{0};
  std::atomic<uint64_t> sent_bytes_{0};
  std::mutex mutex_;  // one frame after the other
  Status failure_;
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
