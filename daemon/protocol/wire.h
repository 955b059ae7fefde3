// Frames on the daemon's socket: docs/protocol.md in C++ (layer: daemon/protocol).
//
// A frame is a header of 12 bytes and its payload; descriptors travel beside the header's first byte. Both ends use
// these functions. Not thread-safe for one direction of one connection; the two directions are independent.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr uint32_t kFrameMagic = 0x3146534d;  // "MSF1", little-endian
inline constexpr size_t kFrameHeaderBytes = 12;
inline constexpr size_t kMaxFrameDescriptors = 253;       // what one message of a Unix socket carries
inline constexpr size_t kFilesFrameDescriptors = 16;      // of a frame of a push's files: daemons may have few
inline constexpr uint32_t kMaxRequestBytes = 256u << 10;  // of a request
inline constexpr uint32_t kMaxFilesBytes = 4u << 20;      // of a frame of a push's files
inline constexpr uint32_t kMaxAnswerBytes = 1u << 30;     // of a JSON frame from the daemon
inline constexpr uint32_t kMaxDataBytes = 1u << 20;       // of a data frame
inline constexpr int kNoTimeout = -1;

enum class FrameKind : uint8_t { kJson = 0, kData = 1 };

// Descriptors that are closed unless taken.
class DescriptorList {
 public:
  DescriptorList() = default;
  DescriptorList(DescriptorList&& other) noexcept;
  DescriptorList& operator=(DescriptorList&& other) noexcept;
  ~DescriptorList();

  void Add(int fd) { fds_.push_back(fd); }
  size_t size() const { return fds_.size(); }
  bool empty() const { return fds_.empty(); }
  // Hands descriptor `index` over; -1 from then on.
  int Take(size_t index);

 private:
  std::vector<int> fds_;
};

struct WireFrame {
  FrameKind kind = FrameKind::kJson;
  std::string payload;
  DescriptorList descriptors;
};

// What a reader accepts: everything else ends the connection.
struct FrameLimits {
  uint32_t json_bytes = kMaxRequestBytes;
  uint32_t data_bytes = 0;
  size_t descriptors = 0;  // 0: the kernel closes what comes
};

// Sends a whole frame. `fds` are borrowed, at most kMaxFrameDescriptors. `timeout_ms`: for the peer to take it all.
// `job` (null: none): its cancellation ends the wait. Errors: Unavailable (the peer is gone or stalls), Cancelled, Io.
Status SendFrame(int socket, FrameKind kind, ByteSpan payload, std::vector<int> fds, int timeout_ms,
                 const JobControl* job = nullptr);
// Sends the frame only if the socket takes its first byte now (progress reports must not wait for a slow reader); then
// it is sent whole. False when it was not sent.
Result<bool> TrySendFrame(int socket, FrameKind kind, ByteSpan payload, int timeout_ms);

// Receives a frame. Memory grows as bytes arrive, not by what the header announces. `wake_fd` (-1: none): becoming
// readable ends the wait for the first byte with Cancelled. `timeout_ms`: for the first byte; once it has come the rest
// must arrive within `body_timeout_ms`. `job` (null: none): its cancellation ends each wait. Errors: Unavailable (the
// peer closed or stalls), Cancelled, InvalidArgument (not a frame, larger than allowed, descriptors where none belong),
// ResourceExhausted (more descriptors than this process may have open), Io.
Result<WireFrame> ReceiveFrame(int socket, const FrameLimits& limits, int wake_fd, int timeout_ms, int body_timeout_ms,
                               const JobControl* job = nullptr);

}  // namespace modelstore
