#include "daemon/protocol/wire.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <utility>

namespace modelstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kFirstPiece = 64u << 10;
constexpr int kTooManyInFlightWaitMs = 10;
constexpr int kLookAtJobEveryMs = 100;
constexpr char kClosed[] = "the other end closed the connection";

// A moment that may be never.
class Deadline {
 public:
  explicit Deadline(int timeout_ms)
      : never_(timeout_ms < 0), at_(Clock::now() + std::chrono::milliseconds(std::max(timeout_ms, 0))) {}

  // For poll: rounded up, -1 for never.
  int LeftMs() const {
    if (never_) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX));
  }

 private:
  bool never_;
  Clock::time_point at_;
};

bool PeerIsGone(int error) { return error == EPIPE || error == ECONNRESET || error == ENOTCONN; }

Status SocketError(int error, std::string_view what) {
  return PeerIsGone(error) ? Unavailable(kClosed) : StatusFromErrno(error, what);
}

// What may end a wait early.
struct Interruption {
  int wake_fd = -1;
  const JobControl* job = nullptr;
};

// Waits until the socket can be read (POLLIN) or written (POLLOUT).
Status Await(int socket, short events, const Interruption& interruption, const Deadline& deadline,
             std::string_view stalled) {
  for (;;) {
    int wait_ms = deadline.LeftMs();
    if (interruption.job != nullptr) {
      RETURN_IF_ERROR(interruption.job->Check());
      wait_ms = wait_ms < 0 ? kLookAtJobEveryMs : std::min(wait_ms, kLookAtJobEveryMs);
    }
    pollfd polled[2] = {{socket, events, 0}, {interruption.wake_fd, POLLIN, 0}};
    const int ready = poll(polled, 2, wait_ms);
    if (ready < 0 && errno != EINTR) return StatusFromErrno(errno, "waiting for the socket");
    if (ready > 0 && polled[1].revents != 0) return Cancelled("the wait for the other end was ended");
    if (ready > 0) return OkStatus();
    if (ready == 0 && deadline.LeftMs() == 0) return Unavailable(std::string(stalled));
  }
}

std::array<std::byte, kFrameHeaderBytes> Header(FrameKind kind, uint32_t length) {
  std::array<std::byte, kFrameHeaderBytes> header{};
  std::memcpy(header.data(), &kFrameMagic, 4);
  header[4] = static_cast<std::byte>(kind);
  std::memcpy(header.data() + 8, &length, 4);
  return header;
}

// Control data of one message with as many descriptors as one can carry.
union DescriptorControl {
  cmsghdr align;
  char bytes[CMSG_SPACE(sizeof(int) * kMaxFrameDescriptors)];
};

// Sends what the socket takes now. Bytes sent, 0 when it takes none.
Result<size_t> SendSome(int socket, std::span<iovec> parts, std::span<const int> fds) {
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  DescriptorControl control{};
  if (!fds.empty()) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  const ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent >= 0) return static_cast<size_t>(sent);
  if (errno == EAGAIN || errno == EINTR) return size_t{0};
  if (errno == ETOOMANYREFS) {
    // More descriptors of this user are on their way than it may have open: the other end has to take some first.
    poll(nullptr, 0, kTooManyInFlightWaitMs);
    return size_t{0};
  }
  return SocketError(errno, "sending to the other end");
}

// Sends header and payload; gives up with false when `try_only` and the socket takes no byte now.
Result<bool> Send(int socket, FrameKind kind, ByteSpan payload, std::span<const int> fds, int timeout_ms, bool try_only,
                  const JobControl* job) {
  if (fds.size() > kMaxFrameDescriptors || payload.size() > UINT32_MAX)
    return Internal("a frame with " + std::to_string(payload.size()) + " bytes and " + std::to_string(fds.size()) +
                    " descriptors was to be sent");
  const auto header = Header(kind, static_cast<uint32_t>(payload.size()));
  const size_t total = header.size() + payload.size();
  const Deadline deadline(timeout_ms);
  size_t done = 0;
  while (done < total) {
    std::array<iovec, 2> parts{};
    size_t count = 0;
    if (done < header.size()) parts[count++] = {const_cast<std::byte*>(header.data()) + done, header.size() - done};
    const size_t from = done < header.size() ? 0 : done - header.size();
    if (from < payload.size()) parts[count++] = {const_cast<std::byte*>(payload.data()) + from, payload.size() - from};
    ASSIGN_OR_RETURN(const size_t sent,
                     SendSome(socket, std::span(parts.data(), count), done == 0 ? fds : std::span<const int>()));
    if (sent == 0 && done == 0 && try_only) return false;
    done += sent;
    if (sent == 0)
      RETURN_IF_ERROR(Await(socket, POLLOUT, {.job = job}, deadline, "the other end does not take what it is sent"));
  }
  return true;
}

struct Received {
  size_t bytes = 0;  // 0: none there yet
  bool truncated_rights = false;
};

// Receives what is there. Descriptors go to `descriptors`; when that is null the kernel closes them and says so.
Result<Received> ReceiveSome(int socket, void* into, size_t bytes, DescriptorList* descriptors) {
  iovec part{into, bytes};
  DescriptorControl control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptors != nullptr) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
  }
  const ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) return Received{};
    return SocketError(errno, "receiving from the other end");
  }
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      descriptors->Add(fd);
    }
  }
  if (got == 0) return Unavailable(kClosed);
  return Received{static_cast<size_t>(got), (message.msg_flags & MSG_CTRUNC) != 0};
}

// Fills `into`; the descriptors of its first bytes go to `descriptors` (null: none may come).
Status ReceiveAll(int socket, char* into, size_t bytes, DescriptorList* descriptors, const Deadline& deadline,
                  const JobControl* job) {
  size_t done = 0;
  while (done < bytes) {
    DescriptorList* const taken = done == 0 ? descriptors : nullptr;
    ASSIGN_OR_RETURN(const Received got, ReceiveSome(socket, into + done, bytes - done, taken));
    if (got.truncated_rights && taken == nullptr)
      return InvalidArgument(
          "descriptors came where none are allowed; they belong to the first byte of a frame of files");
    if (got.truncated_rights)
      return ResourceExhausted("more descriptors were sent than this process may have open (RLIMIT_NOFILE)");
    done += got.bytes;
    if (got.bytes == 0)
      RETURN_IF_ERROR(Await(socket, POLLIN, {.job = job}, deadline, "the other end stopped in the middle of a frame"));
  }
  return OkStatus();
}

// The payload's length. `kind` is set.
Result<uint32_t> ParseHeader(const std::array<char, kFrameHeaderBytes>& header, const FrameLimits& limits,
                             FrameKind* kind) {
  ByteReader in(std::as_bytes(std::span(header)));
  if (in.U32() != kFrameMagic)
    return InvalidArgument("what came is not a frame of modelstore's protocol: it does not start with MSF1");
  const uint8_t kind_number = in.U8();
  if (kind_number > static_cast<uint8_t>(FrameKind::kData))
    return InvalidArgument("a frame of unknown kind " + std::to_string(kind_number));
  *kind = static_cast<FrameKind>(kind_number);
  const bool zeros = (in.U8() | in.U8() | in.U8()) == 0;
  if (!zeros) return InvalidArgument("a frame whose reserved bytes are not zero");
  const uint32_t length = in.U32();
  const uint32_t allowed = *kind == FrameKind::kData ? limits.data_bytes : limits.json_bytes;
  if (length > allowed)
    return InvalidArgument("a frame of " + std::to_string(length) + " bytes came where at most " +
                           std::to_string(allowed) + " are allowed");
  return length;
}

}  // namespace

DescriptorList::DescriptorList(DescriptorList&& other) noexcept : fds_(std::exchange(other.fds_, {})) {}

DescriptorList& DescriptorList::operator=(DescriptorList&& other) noexcept {
  std::swap(fds_, other.fds_);
  return *this;
}

DescriptorList::~DescriptorList() {
  for (const int fd : fds_)
    if (fd >= 0) close(fd);
}

int DescriptorList::Take(size_t index) { return std::exchange(fds_[index], -1); }

Status SendFrame(int socket, FrameKind kind, ByteSpan payload, std::vector<int> fds, int timeout_ms,
                 const JobControl* job) {
  return Send(socket, kind, payload, fds, timeout_ms, /*try_only=*/false, job).status();
}

Result<bool> TrySendFrame(int socket, FrameKind kind, ByteSpan payload, int timeout_ms) {
  return Send(socket, kind, payload, {}, timeout_ms, /*try_only=*/true, nullptr);
}

Result<WireFrame> ReceiveFrame(int socket, const FrameLimits& limits, int wake_fd, int timeout_ms, int body_timeout_ms,
                               const JobControl* job) {
  RETURN_IF_ERROR(Await(socket, POLLIN, {.wake_fd = wake_fd, .job = job}, Deadline(timeout_ms),
                        "the other end sent nothing within the time it has"));
  const Deadline deadline(body_timeout_ms);
  WireFrame frame;
  std::array<char, kFrameHeaderBytes> header{};
  DescriptorList* const taken = limits.descriptors > 0 ? &frame.descriptors : nullptr;
  RETURN_IF_ERROR(ReceiveAll(socket, header.data(), header.size(), taken, deadline, job));
  ASSIGN_OR_RETURN(const uint32_t length, ParseHeader(header, limits, &frame.kind));
  if (frame.descriptors.size() > limits.descriptors)
    return InvalidArgument(std::to_string(frame.descriptors.size()) + " descriptors came where at most " +
                           std::to_string(limits.descriptors) + " are allowed");
  // Grows with what came: a header alone costs the sender nothing.
  while (frame.payload.size() < length) {
    const size_t have = frame.payload.size();
    const size_t piece = std::min<size_t>(length - have, std::max(have, kFirstPiece));
    frame.payload.resize(have + piece);
    RETURN_IF_ERROR(ReceiveAll(socket, frame.payload.data() + have, piece, nullptr, deadline, job));
  }
  return frame;
}

}  // namespace modelstore
