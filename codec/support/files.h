// What several layers do with files and folders (layer: codec/support). Stateless; thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// Writes all bytes at the descriptor's position. Errors: NoSpace, Io; `shown` names the file in them.
Status WriteAll(int fd, ByteSpan bytes, std::string_view shown);

// What this process may still write to the file system of `path`.
Result<uint64_t> FreeBytes(const std::string& path);

// `prefix` and 16 random hexadecimal digits: process ids repeat, in containers above all. Errors: Io.
Result<std::string> RandomName(std::string_view prefix);

// Makes the folder `dir` (absolute) and those above it that are missing. Errors: what the system answers.
Status MakeFolders(const std::string& dir, mode_t mode);

// Makes the folder's entries durable. Some file systems cannot sync a folder; they order its changes themselves.
Status SyncFolder(int fd, std::string_view shown);

// Gives the file `temporary` of the open folder the name `name` (both without '/') there, unless that is taken; `shown`
// is the name in messages. In one step where the file system can refuse existing names in a rename (NFS, exFAT, CIFS
// and most FUSE file systems cannot), else by a hard link, else by a rename after a look: between those two somebody
// else's new file of that name would be lost. Errors: AlreadyExists, what the system answers; `temporary` stays then.
Status GiveName(int folder, const std::string& temporary, const std::string& name, const std::string& shown);

// The file system or kernel does not know the operation, or refuses it for every file.
bool IsUnsupportedErrno(int error_number);

// `path` with a leading "~" or "~/" replaced by `home`. Shells do that, but not for configuration files, for units of
// systemd or within --option=~/path. Errors: InvalidArgument ("~" of others; without an absolute `home`).
Result<std::string> ExpandHome(const std::string& path, const std::string& home);

}  // namespace modelstore
