// ParseSafetensorsHeader on any bytes, as a whole header and as the JSON behind a truthful length. What it accepts must
// keep every promise of its header file.
#include <cstdlib>
#include <unordered_set>

#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckIndex(const TensorIndex& index, uint64_t header_bytes, uint64_t file_bytes) {
  Require(index.header_bytes == header_bytes);
  uint64_t position = header_bytes;
  std::unordered_set<std::string> names;
  for (const TensorEntry& t : index.tensors) {
    Require(t.begin >= position && t.end >= t.begin && t.end <= file_bytes);
    position = t.end;
    uint64_t bytes = DTypeBytes(t.dtype);
    for (const uint64_t dim : t.shape) bytes *= dim;
    Require(bytes == t.end - t.begin);
    Require(t.name.find('\0') == std::string::npos);
    Require(names.insert(t.name).second);
  }
}

void Parse(ByteSpan header, uint64_t file_bytes) {
  const Result<TensorIndex> index = ParseSafetensorsHeader(header, file_bytes);
  if (index.ok()) {
    CheckIndex(index.value(), header.size(), file_bytes);
  } else {
    Require(index.status().code() == StatusCode::kCorruption);
  }
}

void Fuzz(ByteSpan input) {
  constexpr uint64_t kDataBytes = 1024;
  const uint64_t file_bytes = input.size() + kDataBytes;
  const Result<uint64_t> header_bytes = SafetensorsHeaderBytes(input, file_bytes);
  if (header_bytes.ok() && *header_bytes <= input.size()) Parse(input.first(*header_bytes), file_bytes);
  Parse(input, file_bytes);
  ByteWriter w;
  w.U64(input.size());
  w.Append(input);
  Parse(w.view(), w.size() + kDataBytes);
}

}  // namespace
}  // namespace modelstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelstore::Fuzz(std::as_bytes(std::span(data, size)));
  return 0;
}
