#include "daemon/service/answer_stream.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kProgressEveryNs = 100'000'000;

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void AnswerStream::Progress(const JobProgress& progress) {
  const int64_t now = NowNs();
  int64_t due = next_progress_ns_.load(std::memory_order_relaxed);
  if (now < due || !next_progress_ns_.compare_exchange_strong(due, now + kProgressEveryNs)) return;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !failure_.ok()) return;
  const std::string text =
      Dump({{"progress",
             {{"phase", progress.phase}, {"done_bytes", progress.done_bytes}, {"total_bytes", progress.total_bytes}}}});
  const Result<bool> sent = TrySendFrame(socket_, FrameKind::kJson, AsBytes(text), kAnswerTimeoutMs);
  (void)Noted(sent.status(), sent.ok() && *sent ? text.size() : 0);
}

void AnswerStream::Warning(std::string_view message) { (void)SendJson(Dump({{"warning", message}})); }

Status AnswerStream::SendResult(std::string_view document) {
  std::string text = "{\"result\": ";
  text += document;
  text += '}';
  if (text.size() > kMaxAnswerBytes)
    return ResourceExhausted("the answer has " + std::to_string(text.size()) + " bytes, more than the protocol allows");
  return SendJson(text);
}

Status AnswerStream::SendError(const Status& error) {
  return SendJson(Dump({{"error", {{"code", StatusCodeName(error.code())}, {"message", error.message()}}}}));
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
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(failure_);
  return Noted(SendFrame(socket_, kind, payload, {}, kAnswerTimeoutMs), payload.size());
}

Status AnswerStream::Noted(Status status, size_t bytes) {
  if (status.ok()) {
    sent_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  } else {
    failure_ = status;
    on_gone_();
  }
  return status;
}

Status FrameSink::Begin(const std::vector<ModelFile>& files) {
  Json list = Json::array();
  for (const ModelFile& file : files)
    list.push_back({{"path", file.path}, {"bytes", file.bytes}, {"mode", file.mode}, {"mtime_ns", file.mtime_ns}});
  return answers_->SendJson(Dump({{"files", std::move(list)}}));
}

Status FrameSink::BeginFile(size_t index) {
  index_ = index;
  return OkStatus();
}

Status FrameSink::Write(ByteSpan bytes) { return answers_->SendData(bytes); }

Status FrameSink::EndFile() { return answers_->SendJson(Dump({{"file_done", index_}})); }

}  // namespace modelstore
