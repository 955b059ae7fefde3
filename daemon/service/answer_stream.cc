#include "daemon/service/answer_stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "codec/json/json_text.h"
#include "codec/support/guarded.h"
#include "codec/support/user_namespace.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kProgressEveryNs = 100'000'000;

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

int Pace::TimeoutMs() const {
  return static_cast<int>(std::min<int64_t>(kAnswerTimeoutMs, left_ / std::chrono::milliseconds(1)));
}

void Pace::Sent(std::chrono::nanoseconds waited, size_t bytes) {
  const std::chrono::nanoseconds earned(bytes * uint64_t{1'000'000'000} / kBytesPerSecond);
  left_ = std::clamp(left_ + earned - waited, std::chrono::nanoseconds(0), kStock);
}

void AnswerStream::Progress(const JobProgress& progress) {
  const int64_t now = NowNs();
  int64_t due = next_progress_ns_.load(std::memory_order_relaxed);
  if (now < due || !next_progress_ns_.compare_exchange_strong(due, now + kProgressEveryNs)) return;
  if (!mutex_.TryLock()) return;
  const MutexLock lock(mutex_, std::adopt_lock);
  if (!failure_.ok()) return;
  const std::string text = JsonText(Json(
      {{"progress",
        {{"phase", progress.phase}, {"done_bytes", progress.done_bytes}, {"total_bytes", progress.total_bytes}}}}));
  (void)Noted(text.size(),
              [&](int timeout_ms) { return TrySendFrame(socket_, FrameKind::kJson, AsBytes(text), timeout_ms); });
}

void AnswerStream::Warning(std::string_view message) { (void)SendJson(JsonText(Json({{"warning", message}}))); }

Status AnswerStream::SendResult(std::string_view document) {
  std::string text = "{\"result\": ";
  text += document;
  text += '}';
  if (text.size() > kMaxAnswerBytes)
    return ResourceExhausted("the answer has " + std::to_string(text.size()) + " bytes, more than the protocol allows");
  return SendJson(text);
}

Status AnswerStream::SendError(const Status& error) {
  return SendJson(JsonText(Json({{"error", {{"code", StatusCodeName(error.code())}, {"message", error.message()}}}})));
}

Status AnswerStream::SendJson(std::string_view json) { return Send(FrameKind::kJson, AsBytes(json)); }

Status AnswerStream::SendData(ByteSpan bytes) {
  while (!bytes.empty()) {
    const size_t piece = std::min<size_t>(bytes.size(), kMaxDataBytes);
    RETURN_IF_ERROR(Send(FrameKind::kData, bytes.first(piece)));
    bytes = bytes.subspan(piece);
  }
  return OkStatus();
}

Status AnswerStream::Send(FrameKind kind, ByteSpan payload) {
  const MutexLock lock(mutex_);
  RETURN_IF_ERROR(failure_);
  return Noted(payload.size(), [&](int timeout_ms) -> Result<bool> {
    RETURN_IF_ERROR(SendFrame(socket_, kind, payload, {}, timeout_ms));
    return true;
  });
}

Status AnswerStream::Noted(size_t bytes, const std::function<Result<bool>(int timeout_ms)>& send) {
  const int64_t start = NowNs();
  sending_since_ns_ = start;
  const int timeout_ms = pace_.TimeoutMs();
  const Result<bool> sent = Guarded([&] { return send(timeout_ms); });
  sending_since_ns_ = 0;
  const size_t taken = sent.ok() && *sent ? bytes : 0;
  pace_.Sent(std::chrono::nanoseconds(NowNs() - start), taken);
  sent_bytes_.fetch_add(taken, std::memory_order_relaxed);
  if (sent.ok()) return OkStatus();
  failure_ = sent.status();
  on_gone_();
  return failure_;
}

void AnswerStream::CutIfStalled(std::chrono::nanoseconds limit) const {
  const int64_t since = sending_since_ns_;
  if (since != 0 && NowNs() - since > limit.count()) shutdown(socket_, SHUT_RDWR);
}

Status FrameSink::Begin(const std::vector<ModelFile>& files) {
  Json list = Json::array();
  for (const ModelFile& file : files) {
    const int64_t small = ClampToInt64(file.mtime_ns);
    const Json mtime_ns = small == file.mtime_ns ? Json(small) : Json(ToText(file.mtime_ns));
    Json entry = {{"path", file.path}, {"bytes", file.bytes}, {"mode", file.mode}, {"mtime_ns", mtime_ns}};
    if (UserNamespace::Own().is_whole()) entry["gid"] = file.gid;
    list.push_back(std::move(entry));
  }
  return answers_->SendJson(JsonText(Json({{"files", std::move(list)}})));
}

Status FrameSink::BeginFile(size_t index) {
  index_ = index;
  return OkStatus();
}

Status FrameSink::Write(ByteSpan bytes) { return answers_->SendData(bytes); }

Status FrameSink::EndFile() { return answers_->SendJson(JsonText(Json({{"file_done", index_}}))); }

}  // namespace modelstore
