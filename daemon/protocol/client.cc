#include "daemon/protocol/client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "catalog/write/source_reader.h"
#include "codec/json/json_text.h"
#include "codec/support/unique_fd.h"
#include "codec/support/user_namespace.h"
#include "daemon/protocol/wire.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

using Clock = std::chrono::steady_clock;

constexpr auto kConnectLimit = std::chrono::seconds(10);
constexpr int kConnectAgainMs = 20;
constexpr int kFrameTimeoutMs = 60'000;  // for one frame to be taken, or to arrive once it has begun
constexpr int kCancelPollMs = 100;
// For the daemon to confirm a cancellation. It needs none to roll back: the end of the connection says the same.
constexpr auto kConfirmLimit = std::chrono::seconds(1);
constexpr size_t kFilesFrameBytes = 1u << 20;  // a files frame ends after this much text
constexpr int kMaxDepth = 64;                  // of a JSON answer: writing it out again is recursive

// 0 or the errno of the connect: EAGAIN when the daemon's queue of clients that wait is full.
int TryConnect(int fd, const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof address.sun_path - 1));
  while (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    if (errno != EINTR) return errno;
  return 0;
}

// `job` may be null.
Result<UniqueFd> Connect(const std::string& path, std::chrono::milliseconds limit, const JobControl* job) {
  constexpr size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1;
  if (path.empty() || path.size() > kMaxPath)
    return InvalidArgument("socket path '" + path + "': expected 1 to " + std::to_string(kMaxPath) + " bytes, found " +
                           std::to_string(path.size()));
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return StatusFromErrno(errno, "creating a socket");
  const auto deadline = Clock::now() + limit;
  int error = TryConnect(fd.get(), path);
  while (error == EAGAIN && Clock::now() < deadline) {
    if (job != nullptr) RETURN_IF_ERROR(job->Check());
    poll(nullptr, 0, kConnectAgainMs);
    error = TryConnect(fd.get(), path);
  }
  switch (error) {
    case 0:
      return fd;
    case ENOENT:
    case ENOTDIR:
    case ECONNREFUSED:
      return Unavailable("no daemon listens at " + path +
                         ": start modelstored, or work on a store without a daemon by --store DIR or MODELSTORE_STORE");
    case EAGAIN:
      return Busy("the daemon at " + path + " takes no connection: its queue is full; try again");
    default:
      return StatusFromErrno(error, "connecting to the daemon at " + path);
  }
}

bool NestedTooDeep(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

std::string Text(const Json& object, const char* key) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

template <typename Integer>
std::optional<Integer> Number(const Json& object, const char* key) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  if (it == object.end() || !it->is_number_integer()) return std::nullopt;
  const bool fits = it->is_number_unsigned() ? std::in_range<Integer>(it->get<uint64_t>())
                                             : std::in_range<Integer>(it->get<int64_t>());
  if (!fits) return std::nullopt;
  return it->get<Integer>();
}

Status SendJson(int socket, const Json& object, const JobControl* job, const std::vector<int>& fds = {}) {
  // Paths may be any bytes; they are for messages only where they are not UTF-8.
  const std::string text = JsonText(object);
  return SendFrame(socket, FrameKind::kJson, AsBytes(text), fds, kFrameTimeoutMs, job);
}

// What the daemon says until its answer: nothing of it is believed without a look.
class Conversation {
 public:
  Conversation(const DaemonCall& call, const std::string& path, int socket)
      : call_(call), path_(path), socket_(socket) {}

  Status SendRequest() {
    Json request;
    request["protocol"] = kProtocolVersion;
    request["version"] = MODELSTORE_VERSION;
    request["request"] = call_.request;
    request["parameters"] = TryParseOrderedJson(call_.parameters);
    if (!request["parameters"].is_object()) return Internal("a request's parameters are not a JSON object");
    if (call_.source != nullptr) request["files"] = call_.source->files().size();
    if (call_.moments != nullptr) request["moments"] = true;
    RETURN_IF_ERROR(SendJson(socket_, request, call_.job));
    if (call_.source != nullptr) RETURN_IF_ERROR(SendFiles(call_.source->files()));
    return call_.moments == nullptr ? OkStatus() : SendFiles(call_.moments->files());
  }

  // The daemon's answer. `sent`: what became of the request; after a failure only what the daemon has said already
  // counts.
  Result<std::string> Await(const Status& sent) {
    const FrameLimits limits = {
        .json_bytes = kMaxAnswerBytes, .data_bytes = call_.sink != nullptr ? kMaxDataBytes : 0, .descriptors = 0};
    auto heard = Clock::now();
    while (true) {
      if (!cancelled_at_ && call_.job != nullptr && call_.job->cancelled()) {
        cancelled_at_ = Clock::now();
        // When it cannot be sent the daemon is gone or does not listen, which the wait for its answer tells.
        const std::string cancel = JsonText(Json({{"cancel", true}}));
        static_cast<void>(TrySendFrame(socket_, FrameKind::kJson, AsBytes(cancel), kCancelPollMs).ok());
      }
      pollfd readable = {.fd = socket_, .events = POLLIN, .revents = 0};
      const int n = poll(&readable, 1, kCancelPollMs);
      if (n < 0 && errno != EINTR) return StatusFromErrno(errno, "waiting for the daemon at " + path_);
      if (n <= 0) {
        if (n == 0 && !sent.ok()) return sent;
        RETURN_IF_ERROR(CheckPatience(heard));
        continue;
      }
      ASSIGN_OR_RETURN(const WireFrame frame, Receive(limits));
      heard = Clock::now();
      ASSIGN_OR_RETURN(std::optional<std::string> answer, Take(frame));
      if (answer) return *std::move(answer);
    }
  }

 private:
  Status SendFiles(const std::vector<SourceFile>& files) {
    for (size_t next = 0; next < files.size();) {
      std::deque<SourceReader> readers;  // closes what it had to open
      std::vector<int> fds;
      Json list = Json::array();
      for (size_t bytes = 0; next < files.size() && fds.size() < kFilesFrameDescriptors && bytes < kFilesFrameBytes;
           ++next) {
        const SourceFile& file = files[next];
        Result<SourceReader> reader = SourceReader::Open(file);
        if (!reader.ok()) return reader.status();
        fds.push_back(readers.emplace_back(std::move(reader).value()).descriptor());
        bytes += file.path.size() + file.shown_as.size();
        list.push_back({{"path", file.path}, {"shown_as", file.shown_as}, {"mode", file.mode}});
      }
      RETURN_IF_ERROR(SendJson(socket_, {{"files", std::move(list)}}, call_.job, fds));
    }
    return OkStatus();
  }

  Status CheckPatience(Clock::time_point heard) const {
    const auto now = Clock::now();
    if (cancelled_at_ && now - *cancelled_at_ > kConfirmLimit)
      return Cancelled("cancelled by the user; the daemon at " + path_ +
                       " has not confirmed it yet: it rolls back what was begun, unless that is done already");
    if (call_.patience.count() > 0 && now - heard > call_.patience)
      return Unavailable("the daemon at " + path_ + " said nothing for " + std::to_string(call_.patience.count()) +
                         " s: it is stopped, or its disk hangs, and may still do what it was asked to; --timeout "
                         "SECONDS (or MODELSTORE_TIMEOUT) waits longer, 0 for ever");
    return OkStatus();
  }

  Status NotUnderstood(std::string_view what) const {
    return Unsupported("the daemon at " + path_ + " sent what protocol " + std::to_string(kProtocolVersion) +
                       " does not know: " + std::string(what) + "; are both of one version?");
  }

  Result<WireFrame> Receive(const FrameLimits& limits) {
    // Once it has been cancelled, the job ends no wait any more.
    const int limit_ms =
        cancelled_at_ ? static_cast<int>(kConfirmLimit / std::chrono::milliseconds(1)) : kFrameTimeoutMs;
    Result<WireFrame> frame =
        ReceiveFrame(socket_, limits, -1, limit_ms, limit_ms, cancelled_at_ ? nullptr : call_.job);
    if (frame.ok()) return frame;
    if (frame.status().code() == StatusCode::kUnavailable)
      return Unavailable("the daemon at " + path_ +
                         " ended before it answered; a job that had not finished is rolled back");
    if (frame.status().code() == StatusCode::kInvalidArgument) return NotUnderstood(frame.status().message());
    return frame;
  }

  // The answer if it is that.
  Result<std::optional<std::string>> Take(const WireFrame& frame) {
    if (frame.kind == FrameKind::kData) {
      RETURN_IF_ERROR(TakeData(AsBytes(frame.payload)));
      return std::optional<std::string>();
    }
    if (NestedTooDeep(frame.payload))
      return NotUnderstood("JSON of more than " + std::to_string(kMaxDepth) + " levels");
    const Json message = TryParseOrderedJson(frame.payload);
    if (!message.is_object() || message.size() != 1) return NotUnderstood("not a JSON object of one member");
    const std::string& kind = message.begin().key();
    const Json& body = message.begin().value();
    if (kind == "result") {
      if (!body.is_object()) return NotUnderstood("a result that is not an object");
      if (call_.sink != nullptr && (!listed_ || file_ != files_.size()))
        return NotUnderstood("an export with files missing");
      return std::optional(JsonText(body));
    }
    if (kind == "error") {
      const StatusCode code = StatusCodeFromName(Text(body, "code"));
      return Status(code == StatusCode::kOk ? StatusCode::kInternal : code, Text(body, "message"));
    }
    Status taken;
    if (kind == "progress") {
      taken = TakeProgress(body);
    } else if (kind == "warning" && body.is_string()) {
      if (call_.job != nullptr) call_.job->Warn(body.get<std::string>());
    } else if (kind == "open" && call_.source != nullptr) {
      taken = SendAgain(message);
    } else if (kind == "files" && call_.sink != nullptr) {
      taken = TakeFiles(body);
    } else if (kind == "file_done" && call_.sink != nullptr) {
      taken = TakeFileEnd(message);
    } else {
      taken = NotUnderstood("a message '" + kind + "'");
    }
    if (!taken.ok()) return taken;
    return std::optional<std::string>();
  }

  // The daemon could not keep all files open: it reads this one now.
  Status SendAgain(const Json& message) {
    const auto ordinal = Number<uint64_t>(message, "open");
    if (!ordinal || *ordinal >= call_.source->files().size()) return NotUnderstood("a question for no file");
    const JobControl* const job = cancelled_at_ ? nullptr : call_.job;
    const Result<SourceReader> reader = SourceReader::Open(call_.source->files()[*ordinal]);
    if (reader.ok()) return SendJson(socket_, {{"opened", true}}, job, {reader->descriptor()});
    return SendJson(
        socket_,
        {{"not_opened", {{"code", StatusCodeName(reader.status().code())}, {"message", reader.status().message()}}}},
        job);
  }

  Status TakeProgress(const Json& body) {
    const auto done = Number<uint64_t>(body, "done_bytes"), total = Number<uint64_t>(body, "total_bytes");
    if (!done || !total) return NotUnderstood("progress without numbers");
    if (call_.job == nullptr) return OkStatus();
    const std::string phase = Text(body, "phase");
    if (phase != phase_ || *total != total_bytes_ || *done < done_bytes_) {
      call_.job->Begin(phase, *total);
      phase_ = phase;
      total_bytes_ = *total;
      done_bytes_ = 0;
    }
    call_.job->Advance(*done - done_bytes_);
    done_bytes_ = *done;
    return OkStatus();
  }

  Status TakeFiles(const Json& body) {
    if (listed_ || !body.is_array()) return NotUnderstood("a second list of files");
    for (const Json& entry : body) {
      const auto bytes = Number<uint64_t>(entry, "bytes");
      const auto mode = Number<uint32_t>(entry, "mode");
      const auto small = Number<int64_t>(entry, "mtime_ns");
      const std::optional<TimeNs> mtime_ns = small ? TimeNs{*small} : ParseTimeNs(Text(entry, "mtime_ns"));
      if (!bytes || !mode || !mtime_ns) return NotUnderstood("a file without its attributes");
      ModelFile& file = files_.emplace_back();
      file.path = Text(entry, "path");
      file.bytes = *bytes;
      file.mode = *mode;
      // The daemon's ids are this process's where neither is in a user namespace of its own.
      file.gid =
          UserNamespace::Own().is_whole() ? Number<uint32_t>(entry, "gid").value_or(kUnknownGroup) : kUnknownGroup;
      file.mtime_ns = *mtime_ns;
    }
    listed_ = true;
    call_.sink->on_warning = [job = call_.job](std::string message) {
      if (job != nullptr) job->Warn(std::move(message));
    };
    return call_.sink->Begin(files_);
  }

  Status BeginFile() {
    if (file_begun_) return OkStatus();
    if (file_ >= files_.size()) return NotUnderstood("data of no file");
    file_begun_ = true;
    file_bytes_ = 0;
    return call_.sink->BeginFile(file_);
  }

  Status TakeData(ByteSpan bytes) {
    RETURN_IF_ERROR(BeginFile());
    if (bytes.size() > files_[file_].bytes - file_bytes_) return NotUnderstood("more data than the file has");
    file_bytes_ += bytes.size();
    return call_.sink->Write(bytes);
  }

  Status TakeFileEnd(const Json& message) {
    RETURN_IF_ERROR(BeginFile());
    const auto index = Number<uint64_t>(message, "file_done");
    if (!index || *index != file_ || file_bytes_ != files_[file_].bytes) return NotUnderstood("a file that ends early");
    RETURN_IF_ERROR(call_.sink->EndFile());
    file_ += 1;
    file_begun_ = false;
    return OkStatus();
  }

  const DaemonCall& call_;
  const std::string& path_;
  const int socket_;

  std::optional<Clock::time_point> cancelled_at_;
  std::string phase_;
  uint64_t done_bytes_ = 0;
  uint64_t total_bytes_ = std::numeric_limits<uint64_t>::max();

  // Export: the files that come, the one that is coming and how much of it came.
  std::vector<ModelFile> files_;
  bool listed_ = false;
  size_t file_ = 0;
  bool file_begun_ = false;
  uint64_t file_bytes_ = 0;
};

}  // namespace

Result<std::string> CallDaemon(const std::string& socket_path, const DaemonCall& call) {
  const std::chrono::milliseconds limit = call.patience.count() > 0 ? call.patience : kConnectLimit;
  ASSIGN_OR_RETURN(const UniqueFd connection, Connect(socket_path, limit, call.job));
  Conversation conversation(call, socket_path, connection.get());
  const Status sent = conversation.SendRequest();
  // A daemon that refuses a request need not read it to its end: then its answer says why.
  if (!sent.ok() && sent.code() != StatusCode::kUnavailable) return sent;
  return conversation.Await(sent);
}

std::string UserSocketPath() {
  const char* folder = std::getenv("XDG_RUNTIME_DIR");
  if (folder == nullptr || *folder != '/') return "";
  return std::string(folder) + "/modelstore/modelstore.sock";
}

std::string FindDaemonSocket() {
  const std::string user = UserSocketPath();
  // A daemon that was killed leaves its socket: only connecting tells.
  const auto listens = [&] {
    const Status connected = Connect(user, std::chrono::seconds(0), nullptr).status();
    return connected.ok() || connected.code() == StatusCode::kBusy;
  };
  if (!user.empty() && listens()) return user;
  return std::string(kSystemSocketPath);
}

}  // namespace modelstore
