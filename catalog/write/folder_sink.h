// FolderSink: an export's files below a folder (layer: catalog/write).
#pragma once

#include <memory>
#include <string>

#include "catalog/write/export.h"

namespace modelstore {

// Writes below `dir` (absolute; created; a file that exists is refused), with group, mode and mtime; what the process's
// umask forbids is left out of the mode. A file that cannot be given its group lets group and others do what both may
// in the store: the members of its group there are others here, and the other way round. Each file is written under a
// temporary name, synced and given its own; links are not followed. Paths are checked: they may come from anyone. Runs
// of zeros become holes where the file system has such. What a file system cannot keep (modes, times) is a warning,
// once each. A sink that is destroyed before its last file's end removes the files that it made. Errors of its calls:
// AlreadyExists, InvalidArgument (a path), PermissionDenied, NoSpace, Io.
std::unique_ptr<ExportSink> NewFolderSink(std::string dir);

}  // namespace modelstore
