// What the kernel says about mount points (layer: fuse; no libfuse here). Free functions without state.
//
// Nothing here asks the file system that is mounted, except IsDead, because a mount whose server was killed or hangs
// answers with an error or not at all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

inline constexpr std::string_view kMountType = "fuse.modelstore";

struct MountEntry {
  std::string mountpoint;
  std::string type;  // "fuse.modelstore"
  uint32_t device_major = 0, device_minor = 0;
};

// Parses /proc/self/mountinfo (lines that make no sense are skipped).
std::vector<MountEntry> ParseMountInfo(std::string_view text);

// The topmost mount at exactly this (resolved) folder. Errors: Io.
Result<std::optional<MountEntry>> FindMount(const std::string& mountpoint);

// The absolute path without links. Works when a dead mount is mounted there and when the last components are missing.
// Errors: NotFound, PermissionDenied, Io.
Result<std::string> ResolveMountpoint(const std::string& path);

// True when the server of the mount at `mountpoint` is gone.
bool IsDead(const std::string& mountpoint);

// Unmounts what is on top at `mountpoint`; `lazy` also when files are open. As an ordinary user through fusermount3.
// Errors: Busy, PermissionDenied, Unavailable (no fusermount3), Io.
Status DetachMount(const std::string& mountpoint, bool lazy);

// Sets the read-ahead of a mounted file system when we may, and returns what is in force; 0 when the kernel does not
// say.
uint32_t SetReadAhead(const MountEntry& entry, uint32_t read_ahead_kb);

}  // namespace modelstore
