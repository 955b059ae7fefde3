// FileLayout: the extents that tile a source file, before anything of it is coded (layer: catalog/write; private).
#pragma once

#include <string>
#include <vector>

#include "catalog/schema/records.h"
#include "catalog/write/source_reader.h"
#include "codec/support/job_control.h"

namespace modelstore {

// Bytes [begin, begin + bytes) of the file, to be stored as one tensor, or as they are (`literal`, never empty then).
struct SourceExtent {
  uint64_t begin = 0;
  uint64_t bytes = 0;
  DType dtype = DType::kOpaque;
  std::vector<uint64_t> shape;
  std::string name;  // "" for headers, padding and content
  Bytes literal;

  uint64_t elems() const { return bytes / DTypeBytes(dtype); }
  bool is_literal() const { return !literal.empty(); }
};

struct FileLayout {
  FileKind kind = FileKind::kContent;
  std::vector<SourceExtent> extents;
};

// A well-formed safetensors file, whatever it is called: its header and larger gaps as opaque content, small gaps as
// literals, each tensor (also one of 0 elements) an extent of its name. Everything else: one opaque tensor; a file of 0
// bytes has no extents. A file that is called .safetensors and is none is content, with a warning that says what it is
// when that can be seen. Errors: Io.
Result<FileLayout> LayOutFile(const SourceReader& source, JobControl& job);

}  // namespace modelstore
