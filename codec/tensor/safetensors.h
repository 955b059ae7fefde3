// The safetensors container: header bytes -> where each tensor lies (layer: codec/tensor).
//
// Parses untrusted bytes: every size is bounded before anything is allocated, nesting is bounded, and a file that
// breaks a rule of the format is Corruption with the rule named (the caller then stores it as plain content). Nothing
// here touches a file. https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/tensor/dtype.h"

namespace modelstore {

struct TensorEntry {
  std::string name;  // any UTF-8 without NUL; never used as a path
  DType dtype = DType::kOpaque;
  // At most 64 dimensions, the last one being the product of all further ones; of kOpaque: {end - begin}. So elements x
  // DTypeBytes is always the length.
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // absolute byte offsets in the file: [begin, end)
  uint64_t end = 0;
};

// Tensors sorted by (begin, end), not overlapping, inside the file. Gaps between them are allowed (they are kept as
// literal bytes), tensors of 0 bytes too.
struct TensorIndex {
  uint64_t header_bytes = 0;  // 8 + JSON length: the data section starts here
  std::vector<TensorEntry> tensors;
};

inline constexpr uint64_t kSafetensorsMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
inline constexpr uint64_t kSafetensorsLengthBytes = 8;

// Bytes of the whole header (8 + JSON), from the file's first 8 bytes.
// Errors: Corruption when the file is too short, the length exceeds the file or kSafetensorsMaxHeaderBytes.
Result<uint64_t> SafetensorsHeaderBytes(ByteSpan first_bytes, uint64_t file_bytes);

// Whether a file with these first kSafetensorsProbeBytes bytes (or fewer, when it has fewer) could be a safetensors
// file, whatever it is called: its length fits, and an object begins behind it.
inline constexpr uint64_t kSafetensorsProbeBytes = kSafetensorsLengthBytes + 1;
bool MayBeSafetensors(ByteSpan first_bytes, uint64_t file_bytes);

// The whole header, by `read`, which fills a span with the file's first bytes. Errors: as SafetensorsHeaderBytes; what
// `read` answers.
Result<Bytes> LoadSafetensorsHeader(uint64_t file_bytes, const std::function<Status(MutableByteSpan)>& read);

// `header`: the first SafetensorsHeaderBytes() bytes of a file of `file_bytes` bytes.
// What the reference implementation opens is opened, but for names with NUL or of more than 65,535 bytes; beyond that,
// gaps between tensors and dtypes of any name are taken. Rules checked: a JSON object, blanks around it allowed;
// __metadata__ null or an object of strings; of tensors of one name the last counts; dtype a string, shape a list of
// non-negative integers whose product does not overflow, data_offsets inside the data section, end - begin equal to
// elements x dtype size for known dtypes (an unknown dtype becomes kOpaque with any length), fields that the format
// does not know passed over, no overlap, no NUL in names. Errors: Corruption, with the tensor's name escaped for
// printing.
Result<TensorIndex> ParseSafetensorsHeader(ByteSpan header, uint64_t file_bytes);

}  // namespace modelstore
