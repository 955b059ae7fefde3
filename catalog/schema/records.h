// What each key and value of the catalog means (layer: catalog/schema). docs/format.md is the specification.
//
// Records are plain values; Serialize and Parse are inverse; Parse takes untrusted bytes: sizes are bounded before
// anything is allocated, an unknown record version or kind is Unsupported, trailing or missing bytes are Corruption.
// Field numbers, kinds and key layouts are on disk: never renumber.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/clock.h"
#include "codec/support/hash.h"
#include "codec/support/status.h"
#include "codec/tensor/dtype.h"
#include "codec/tensor/encoding.h"

namespace modelstore {

inline constexpr uint32_t kFormatVersion = 1;
inline constexpr uint32_t kMaxRank = 64;           // dimensions of a tensor
inline constexpr uint32_t kMaxInlineLiteral = 64;  // bytes of a literal extent

using ModelId = uint64_t;  // never reused; survives a rename
using PushId = uint64_t;   // never reused; names the blocks one push wrote

// Identity of stored content: hash of dtype, shape and bytes, and an ordinal among contents with the same hash (0
// unless somebody made a collision).
struct TensorId {
  Hash128 hash;
  uint16_t ordinal = 0;
  auto operator<=>(const TensorId&) const = default;
};

// How a run of consecutive elements sees another tensor.
struct ViewSegment {
  enum class Kind : uint8_t {
    kIdentity = 0,  // element i of the segment is predicted by element base_offset_elems + i of `base`, converted to
                    // the frame's coded dtype
    kNone = 1,      // no base: predicted as zero (rows that a base with a smaller vocabulary lacks)
  } kind = Kind::kIdentity;  // 2.. reserved: row permutation, transpose, row range
  uint64_t elems = 0;
  TensorId base;
  uint64_t base_offset_elems = 0;
};

// Segments that tile what is seen.
using View = std::vector<ViewSegment>;

// What a tensor is made from, besides its blocks: (parts of) other tensors.
struct TensorInput {
  InputRole role = InputRole::kBase;
  View view;
};

// families: tensors, key TensorKey(id)
struct TensorRecord {
  DType dtype = DType::kOpaque;
  std::vector<uint64_t> shape;
  uint64_t bytes = 0;        // logical
  uint64_t coded_bytes = 0;  // sum of the block values' sizes
  PushId push = 0;
  uint32_t first_block = 0;
  uint32_t block_count = 0;
  uint8_t depth = 0;                // 0: no base; 1: its base has depth 0; …
  Bytes frame;                      // codec/decode/frame.h
  std::vector<TensorInput> inputs;  // each role once

  // Of the frame's first byte. One that this version does not know counts as any with blocks.
  const EncodingFacts& encoding() const;
  bool is_computed() const { return !encoding().has_blocks; }
  // Empty when it has no such input.
  const View& ViewOf(InputRole role) const;
  // To be filled or changed.
  View& MutableViewOf(InputRole role);
};

// Calls visit(id) for each tensor that `view` sees, as often as it names it.
template <typename VisitFn>
void ForEachSeen(const View& view, const VisitFn& visit) {
  for (const ViewSegment& segment : view)
    if (segment.kind == ViewSegment::Kind::kIdentity) visit(segment.base);
}

// Calls visit(id) for each tensor that predicts `record`, as often as its view names it.
template <typename VisitFn>
void ForEachBase(const TensorRecord& record, const VisitFn& visit) {
  ForEachSeen(record.ViewOf(InputRole::kBase), visit);
}

// Calls visit(id) for each tensor that `record` is made from besides its base.
template <typename VisitFn>
void ForEachPart(const TensorRecord& record, const VisitFn& visit) {
  for (const TensorInput& input : record.inputs)
    if (input.role != InputRole::kBase) ForEachSeen(input.view, visit);
}

// Calls visit(id) for each tensor that must exist as long as `record` does: its bases and its parts.
template <typename VisitFn>
void ForEachReference(const TensorRecord& record, const VisitFn& visit) {
  ForEachBase(record, visit);
  ForEachPart(record, visit);
}

// A file is the concatenation of its extents.
struct Extent {
  enum class Kind : uint8_t {
    kLiteral = 0,     // `literal` holds the bytes (at most kMaxInlineLiteral)
    kTensor = 1,      // all bytes of `tensor`
    kTensorPart = 2,  // bytes [offset_bytes, offset_bytes + bytes) of `tensor` (derived files)
  } kind = Kind::kTensor;
  uint64_t bytes = 0;
  TensorId tensor;
  uint64_t offset_bytes = 0;
  Bytes literal;
  std::string name;  // the tensor's name in its container; "" for headers, padding and content
};

enum class FileKind : uint8_t { kContent = 0, kSafetensors = 1 };

// family files, key FileKey(sha256)
struct FileRecord {
  FileKind kind = FileKind::kContent;
  uint64_t bytes = 0;
  std::vector<Extent> extents;
};

struct ModelFile {
  std::string path;  // relative, '/'-separated, no empty, '.' or '..' component
  Sha256Digest sha256{};
  uint64_t bytes = 0;
  uint32_t mode = 0444;  // who may read and execute it: within kFileModeBits
  uint32_t gid = 0;      // group of the source: who the group bits of `mode` speak of
  TimeNs mtime_ns = 0;
  int64_t published_ns = 0;  // when it came into the model as it is; 0: with the model's latest push
};

inline constexpr uint32_t kFileModeBits = 0555;
inline bool IsExecutable(const ModelFile& file) { return (file.mode & 0111) != 0; }

enum class Fidelity : uint8_t { kExact = 0, kCompact = 1 };

// What a compact model's drift was measured with: nothing, or the moments of its inputs.
enum class DriftKind : uint8_t { kNone = 0, kPlain = 1, kMoments = 2 };
inline constexpr size_t kMaxMethodBytes = 255;

// family models, key = name
struct ModelRecord {
  ModelId id = 0;
  std::string name;
  Fidelity fidelity = Fidelity::kExact;
  int64_t created_ns = 0;
  PushId push = 0;
  uint64_t logical_bytes = 0;
  uint64_t pushed_stored_bytes = 0;  // what its push added, as push reported it
  ModelId base = 0;                  // the model that gives most base bytes, or it is derived from; 0: none
  uint32_t owner_uid = 0;            // who pushed it (records of version 1, written before there were owners: root)
  std::vector<ModelFile> files;      // sorted by path
  bool allow_compact = false;        // the daemon's policy may make it compact
  bool derived = false;              // made of its base by a recipe: `method`. It pins that model
  // Of a compact model: the error that it was stored with, relative to its delta's energy, and how it was made, for
  // people (at most kMaxMethodBytes).
  DriftKind drift_kind = DriftKind::kNone;
  double drift = 0;
  std::string method;
};

// family meta, key "catalog"
struct CatalogMeta {
  uint32_t format_version = kFormatVersion;
  std::vector<std::string> features;  // unknown ones: refuse to open
  ModelId next_model = 1;
  PushId next_push = 1;
  uint64_t model_count = 0;
  uint64_t model_digest = 0;  // XOR over models of ModelDigest(record): notices a vanished model
};
inline constexpr std::string_view kCatalogMetaKey = "catalog";
inline constexpr std::string_view kCompactFeature = "compact";        // some tensor is compact
inline constexpr std::string_view kDerivedFeature = "derived";        // some model is derived
inline constexpr std::string_view kExecutableFeature = "executable";  // some file has execute bits

bool FeatureIsKnown(std::string_view feature);
// Unless the store has it already.
void AddFeature(CatalogMeta* meta, std::string_view feature);

// A sampled fingerprint of a tensor of at least kSketchMinElems elements (family sketches, key TensorKey(id)): `values`
// are the bfloat16 bit patterns (truncated) of elements at fixed fractional positions, so that a finetune's sketch is
// near its base's.
inline constexpr uint64_t kSketchMinElems = 64 * 1024;
inline constexpr size_t kSketchValues = 64;
struct SketchRecord {
  DType dtype = DType::kOpaque;
  std::vector<uint64_t> shape;
  std::vector<uint16_t> values;
};

// What a stored file needs (family meta, key UsageKey(sha256)): everything that report and rm count, so that they need
// not parse the records of every tensor. Derived from the records of the file, its tensors and their bases; docs/
// format.md, "Usage".
struct UsageRecord {
  struct Tensor {
    uint64_t id = 0;  // ShortTensorId
    uint64_t cost_bytes = 0;
    uint64_t bytes = 0;     // of its first extent in the file; of a tensor in parts, of all of them
    uint8_t encoding = 0;   // of its frame (codec/decode/frame.h)
    bool is_named = false;  // its first extent has a name
    bool in_parts = false;  // the file may hold not all of it (extents of kind 2)
    bool operator==(const Tensor&) const = default;
  };
  struct Base {
    uint64_t id = 0;
    uint64_t cost_bytes = 0;
    bool operator==(const Base&) const = default;
  };
  FileKind kind = FileKind::kContent;
  uint64_t cost_bytes = 0;      // key and value of the file's record
  uint64_t literal_bytes = 0;   // of the file's content: literals
  uint64_t repeated_bytes = 0;  // … and extents of tensors that came earlier in the file
  std::vector<Tensor> tensors;  // each once, in file order; then the parts of the compact ones, of no bytes
  std::vector<Base> bases;      // what those need besides, directly or through other bases; by id, none twice
  bool operator==(const UsageRecord&) const = default;
};
inline constexpr std::string_view kUsagePrefix = "usage/";

// Family meta, key kUsageTotalsKey.
struct UsageTotals {
  ModelId next_model = 0;   // the catalog record's: every model before it was published together with its usage records
  uint64_t cost_bytes = 0;  // of all tensors and files, needed or not
};
inline constexpr std::string_view kUsageTotalsKey = "usage";

Bytes Serialize(const TensorRecord& record);
Bytes Serialize(const FileRecord& record);
Bytes Serialize(const ModelRecord& record);
Bytes Serialize(const CatalogMeta& record);
Bytes Serialize(const SketchRecord& record);
Bytes Serialize(const UsageRecord& record);
Bytes Serialize(const UsageTotals& record);
Result<TensorRecord> ParseTensorRecord(ByteSpan bytes);
Result<FileRecord> ParseFileRecord(ByteSpan bytes);
Result<ModelRecord> ParseModelRecord(ByteSpan bytes);
Result<CatalogMeta> ParseCatalogMeta(ByteSpan bytes);
Result<SketchRecord> ParseSketchRecord(ByteSpan bytes);
Result<UsageRecord> ParseUsageRecord(ByteSpan bytes);
Result<UsageTotals> ParseUsageTotals(ByteSpan bytes);
uint64_t ModelDigest(const ModelRecord& record);

// Keys. Numbers are big-endian so that byte order is numeric order.
std::string TensorKey(const TensorId& id);  // 18 bytes: hash high, low, ordinal
Result<TensorId> ParseTensorKey(std::string_view key);
std::string TensorKeyPrefix(const Hash128& hash);                      // 16 bytes: all ordinals of a hash
std::string BlockKey(PushId push, uint32_t index);                     // 12 bytes
std::string BlockKeyPrefix(PushId push);                               // 8 bytes
std::string FileKey(const Sha256Digest& sha256);                       // 32 bytes
std::string UsageKey(const Sha256Digest& sha256);                      // kUsagePrefix and 32 bytes
std::string EdgeKey(const TensorId& base, const TensorId& dependent);  // 36 bytes, value empty
Result<TensorId> ParseEdgeDependent(std::string_view key);

// A tensor's name in usage records. Two tensors share one by chance in one of 2^64 pairs, or on purpose: it is for
// figures and for where to look. What is refused or deleted is decided by whole ids.
uint64_t ShortTensorId(const TensorId& id);

// Keys and values that a tensor adds to the store: its record (`record_bytes` long), blocks, edges, and the sketch that
// a tensor of its type and size has; a compact one has a record alone. A function of the record alone: a sketch that
// was taken away counts too.
uint64_t TensorCost(const TensorRecord& record, size_t record_bytes);
// Of a file's record.
uint64_t FileCost(size_t record_bytes);

// Hash that identifies a tensor: dtype, rank and dimensions, then the bytes.
Hasher128 StartTensorHash(DType dtype, const std::vector<uint64_t>& shape);

// A block's value: 8 bytes Checksum64 of the rest, then the coded bytes.
inline constexpr size_t kBlockHeaderBytes = 8;
Bytes SealBlock(ByteSpan coded);
// The coded bytes. Errors: Corruption when the checksum disagrees.
Result<ByteSpan> OpenBlock(ByteSpan value);

// A model's name: components separated by '/', each 1-255 bytes of UTF-8 without control characters, not '.' or '..',
// not starting with '-'; at most 1024 bytes. Errors: InvalidArgument naming the rule.
Status CheckModelName(std::string_view name);
// A file's path within a model, same rules for components but a leading '-' is allowed, at most 4096 bytes.
Status CheckFilePath(std::string_view path);

}  // namespace modelstore
