#include "daemon/service/client_connection.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "codec/support/guarded.h"
#include "codec/support/log.h"
#include "codec/support/thread.h"
#include "daemon/protocol/wire.h"
#include "daemon/service/peer.h"

namespace modelstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRequestTimeoutMs = 10'000;
constexpr int kFilesTimeoutMs = 30'000;           // between two frames of a push's files
constexpr uint32_t kMaxLaterBytes = 64u << 10;    // of a frame after the request
constexpr uint64_t kMaxFiles = 1'000'000;         // of one push
constexpr size_t kMaxFileNamesBytes = 64u << 20;  // of one push
constexpr size_t kLargeDocumentBytes = 1u << 20;  // keeps its place until it was sent
// All files of a push: so long, and so much longer for each.
constexpr auto kAllFilesTime = std::chrono::seconds(120);
constexpr auto kEachFileTime = std::chrono::milliseconds(10);

LogLevel LevelOf(StatusCode code) {
  switch (code) {
    case StatusCode::kCorruption:
    case StatusCode::kIo:
    case StatusCode::kInternal:
      return LogLevel::kError;
    case StatusCode::kNoSpace:
    case StatusCode::kResourceExhausted:
    case StatusCode::kPermissionDenied:
      return LogLevel::kWarning;
    default:
      return LogLevel::kInfo;
  }
}

std::string Seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", seconds);
  return text;
}

Result<std::string> ReceiveJson(int socket, const FrameLimits& limits, int timeout_ms, int body_timeout_ms,
                                DescriptorList* descriptors) {
  ASSIGN_OR_RETURN(WireFrame frame, ReceiveFrame(socket, limits, -1, timeout_ms, body_timeout_ms));
  if (frame.kind != FrameKind::kJson) return InvalidArgument("a frame of data came where a request belongs");
  if (descriptors != nullptr) *descriptors = std::move(frame.descriptors);
  return std::move(frame.payload);
}

}  // namespace

ClientConnection::ClientConnection(int socket, ServerState* state)
    : socket_(socket),
      state_(*state),
      answers_(socket, [this] { Cancel(); }),
      passed_files_(&answers_),
      job_([this](const JobProgress& progress) {
        if (entry_) entry_->Update(progress);
        answers_.Progress(progress);
      }) {
  job_.on_warning = [this](const std::string& message) { answers_.Warning(message); };
}

ClientConnection::~ClientConnection() { close(socket_); }

void ClientConnection::Run() {
  const Status answered = Guarded([this] {
    Answer();
    return OkStatus();
  });
  if (!answered.ok()) Log(LogLevel::kError, "a client's answer could not be sent for lack of memory");
}

void ClientConnection::Answer() {
  const auto start = Clock::now();
  const Result<std::string> served = Guarded([this] { return Serve(); });
  const Result<std::string> answer =
      !served.ok() && stopping_
          ? Unavailable("modelstored is stopping; the request was ended and what it did was rolled back")
          : served;
  Status sent = answer.ok() ? answers_.SendResult(*answer) : answers_.SendError(answer.status());
  if (sent.code() == StatusCode::kResourceExhausted) sent = answers_.SendError(sent);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  state_.counters.Served(handler_ ? handler_->name : "other", answer.status().code(), seconds, answers_.sent_bytes());
  LogRequest(answer.status(), seconds);
}

void ClientConnection::Stop() {
  stopping_ = true;
  Cancel();
  shutdown(socket_, SHUT_RD);  // ends a wait for the client
}

void ClientConnection::Cancel() {
  job_.Cancel();
  state_.pushes.WakeAll();
  state_.exports.WakeAll();
  state_.documents.WakeAll();
  state_.parses.WakeAll();
}

Result<std::string> ClientConnection::Serve() {
  ASSIGN_OR_RETURN(caller_, CallerOf(socket_, state_.group));
  if (!caller_.administrator) account_ = caller_.uid;
  ASSIGN_OR_RETURN(request_, ReceiveRequest());
  handler_ = FindHandler(request_.request);
  if (handler_ == nullptr)
    return Unsupported("this modelstored (" MODELSTORE_VERSION ") knows no request '" + request_.request + "'");
  if (handler_->writes && !state_.why_read_only.ok()) return state_.why_read_only;
  const bool takes_tree = handler_->files == RequestFiles::kTreeAndMoments;
  const bool takes_moments = handler_->files != RequestFiles::kNone;
  if ((!takes_tree && request_.files > 0) || (!takes_moments && request_.moments))
    return InvalidArgument("files came with a request that takes none");

  // Nobody who may not push makes the daemon hold descriptors.
  DescriptorBudget::Share share;
  SourceTree source, moments;
  if (takes_moments) {
    RETURN_IF_ERROR(caller_.CheckMayPush());
    if (request_.files > kMaxFiles)
      return ResourceExhausted("a push of " + std::to_string(request_.files) + " files; at most " +
                               std::to_string(kMaxFiles) + " go into one model, push them as several");
    const size_t moments_files = request_.moments ? 1 : 0;
    ASSIGN_OR_RETURN(share, state_.descriptors.Take(request_.files + moments_files, account_));
    const size_t for_tree = share.count() - std::min(share.count(), moments_files);
    const size_t held = for_tree >= request_.files ? for_tree : for_tree - std::min(for_tree, kWindowFiles);
    ASSIGN_OR_RETURN(source, ReceiveFiles(request_.files, held));
    ASSIGN_OR_RETURN(moments, ReceiveFiles(moments_files, moments_files));
  }
  return RunHandler(*handler_, takes_tree ? &source : nullptr, request_.moments ? &moments : nullptr);
}

Result<ClientRequest> ClientConnection::ReceiveRequest() {
  ASSIGN_OR_RETURN(const std::string text,
                   ReceiveJson(socket_, FrameLimits{}, kRequestTimeoutMs, kRequestTimeoutMs, nullptr));
  // For everyone alike: nobody keeps this place by what he does not send or take.
  ASSIGN_OR_RETURN(const Gate::Place place, state_.parses.Enter(job_, std::nullopt));
  return ParseClientRequest(text);
}

Result<SourceTree> ClientConnection::ReceiveFiles(uint64_t count, size_t held) {
  SourceTree tree;
  const auto window = std::make_shared<SourceWindow>(
      kWindowFiles, [this](const SourceFile& file) { return passed_files_.Ask(file.ordinal); });
  const OwnMount own = {.device = state_.mount_device, .catalog = &state_.catalog};
  size_t name_bytes = 0;
  const auto deadline = Clock::now() + kAllFilesTime + count * kEachFileTime;
  while (tree.files().size() < count) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0)
      return Unavailable("of " + std::to_string(count) + " files only " + std::to_string(tree.files().size()) +
                         " came within the time that a push has to send them");
    const int timeout_ms = static_cast<int>(std::min<int64_t>(left, kFilesTimeoutMs));
    DescriptorList descriptors;
    ASSIGN_OR_RETURN(const std::string text,
                     ReceiveJson(socket_, {.json_bytes = kMaxFilesBytes, .descriptors = kMaxFrameDescriptors},
                                 timeout_ms, timeout_ms, &descriptors));
    ASSIGN_OR_RETURN(std::vector<ClientFile> named, ParseClientFiles(text));
    if (named.empty() || named.size() != descriptors.size() || named.size() > count - tree.files().size())
      return InvalidArgument("a frame with " + std::to_string(named.size()) + " files and " +
                             std::to_string(descriptors.size()) + " descriptors, of " + std::to_string(count) +
                             " files announced");
    for (size_t i = 0; i < named.size(); ++i) {
      name_bytes += named[i].path.size() + named[i].shown_as.size();
      RETURN_IF_ERROR(tree.AddDescriptor({.path = std::move(named[i].path),
                                          .shown_as = std::move(named[i].shown_as),
                                          .fd = descriptors.Take(i),
                                          .mode = named[i].mode},
                                         own, tree.files().size() < held ? nullptr : window));
    }
    if (name_bytes > kMaxFileNamesBytes)
      return ResourceExhausted("the names of the push's files have more than " + std::to_string(kMaxFileNamesBytes) +
                               " bytes; push them as several models");
  }
  RETURN_IF_ERROR(tree.FinishDescriptors());
  return tree;
}

Result<std::string> ClientConnection::RunHandler(const Handler& handler, const SourceTree* source,
                                                 const SourceTree* moments) {
  entry_.emplace(&state_.jobs,
                 JobInfo{.request = std::string(handler.name), .model = request_.model, .uid = caller_.uid});
  ASSIGN_OR_RETURN(Thread listener, Thread::Start([this] { Listen(); }, kThreadStackBytes));
  Result<std::string> answer = Guarded([&] { return RunInTurn(handler, source, moments); });
  if (!answer.ok() || answer->size() < kLargeDocumentBytes) place_.reset();
  shutdown(socket_, SHUT_RD);  // ends the listening
  listener.Join();
  entry_.reset();
  if (answer.status().code() == StatusCode::kCancelled && !said_.ok()) return said_;
  return answer;
}

Result<std::string> ClientConnection::RunInTurn(const Handler& handler, const SourceTree* source,
                                                const SourceTree* moments) {
  if (Gate* const gate = GateOf(handler); gate != nullptr) {
    ASSIGN_OR_RETURN(place_, gate->Enter(job_, account_));
  }
  FrameSink sink(&answers_);
  const Request request{
      .parameters = request_.parameters,
      .job = &job_,
      .caller = &caller_,
      .source = source,
      .moments = moments,
      .sink = &sink,
      .layer_names = state_.layer_names,
      .on_pushed =
          [this](const PushReport& report) { state_.counters.Pushed(report.logical_bytes, report.stored_bytes); },
      .complete_status = [this](const std::string& document) { return state_.complete_status(document, caller_); }};
  return handler.run(state_.catalog, request);
}

Gate* ClientConnection::GateOf(const Handler& handler) const {
  switch (handler.limit) {
    case RequestLimit::kNone:
      return nullptr;
    case RequestLimit::kPush:
      return &state_.pushes;
    case RequestLimit::kWholeModels:
      return &state_.exports;
    case RequestLimit::kDocument:
      return &state_.documents;
  }
  return nullptr;
}

void ClientConnection::Listen() {
  said_ = Guarded([this]() -> Status {
    for (;;) {
      const Status later = TakeLaterFrame();
      if (later.code() == StatusCode::kUnavailable) return Cancelled("the client went away");
      RETURN_IF_ERROR(later);
    }
  });
  passed_files_.End(said_);
  Cancel();
}

Status ClientConnection::TakeLaterFrame() {
  DescriptorList descriptors;
  ASSIGN_OR_RETURN(const std::string text, ReceiveJson(socket_, {.json_bytes = kMaxLaterBytes, .descriptors = 1},
                                                       kNoTimeout, kRequestTimeoutMs, &descriptors));
  ASSIGN_OR_RETURN(const LaterFrame frame, ParseLaterFrame(text));
  if (frame.not_opened.ok() && descriptors.empty()) return InvalidArgument("a file that was opened came without it");
  const bool is_asked_for =
      frame.not_opened.ok() ? passed_files_.Give(UniqueFd(descriptors.Take(0))) : passed_files_.Give(frame.not_opened);
  return is_asked_for ? OkStatus() : InvalidArgument("a file came that nobody had asked for");
}

void ClientConnection::LogRequest(const Status& status, double seconds) const {
  const bool said_nothing = request_.request.empty() && status.code() == StatusCode::kUnavailable;
  LogLevel level = status.ok() ? LogLevel::kInfo : LevelOf(status.code());
  if (said_nothing || (status.ok() && !handler_->writes && !state_.log_reads)) level = LogLevel::kDebug;
  const std::string code(StatusCodeName(status.code()));
  const std::string uid = std::to_string(caller_.uid), message(status.message());
  if (status.ok()) {
    Log(level, "request",
        {{"uid", uid},
         {"request", request_.request},
         {"model", request_.model},
         {"client", request_.version},
         {"code", code},
         {"seconds", Seconds(seconds)}});
  } else {
    Log(level, "request",
        {{"uid", uid},
         {"request", request_.request},
         {"model", request_.model},
         {"client", request_.version},
         {"code", code},
         {"seconds", Seconds(seconds)},
         {"error", message}});
  }
}

}  // namespace modelstore
