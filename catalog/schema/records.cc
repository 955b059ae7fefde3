#include "catalog/schema/records.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "codec/support/packed.h"

namespace modelstore {
namespace {

constexpr uint8_t kRecordVersion = 1;  // first byte of every record
constexpr uint8_t kPackedVersion = 2;  // of tensors and files: the body is packed
// Of a packed record: what is packed well may say millions of them in some kilobytes.
constexpr uint64_t kMaxPackedItems = 1 << 20;
constexpr size_t kMaxFeatures = 256;
constexpr uint8_t kAllowCompactFlag = 1, kDerivedFlag = 2;  // of models

void PutTensorId(ByteWriter& out, const TensorId& id) {
  out.U64(id.hash.low);
  out.U64(id.hash.high);
  out.U16(id.ordinal);
}

TensorId TakeTensorId(ByteReader& in) {
  TensorId id;
  id.hash.low = in.U64();
  id.hash.high = in.U64();
  id.ordinal = in.U16();
  return id;
}

void PutShape(ByteWriter& out, const std::vector<uint64_t>& shape) {
  out.Varint(shape.size());
  for (const uint64_t dim : shape) out.Varint(dim);
}

Status Malformed(std::string_view what, std::string_view why) {
  return Corruption(std::string(what) + " record: " + std::string(why));
}

// Every record ends here: nothing missing, nothing left over.
Status CheckEnd(const ByteReader& in, std::string_view what) {
  if (!in.ok()) return Malformed(what, "cut short or a malformed number");
  if (!in.AtEnd()) return Malformed(what, std::to_string(in.remaining()) + " bytes left over");
  return OkStatus();
}

// The version of a record, at most `newest`.
Result<uint8_t> TakeVersion(ByteReader& in, std::string_view what, uint8_t newest = kRecordVersion) {
  const uint8_t version = in.U8();
  if (!in.ok()) return Malformed(what, "empty");
  if (version < kRecordVersion || version > newest)
    return Unsupported(std::string(what) + " record: version " + std::to_string(version) + ", this build reads " +
                       std::to_string(newest) + "; use a newer modelstore");
  return version;
}

Status TakeDType(ByteReader& in, std::string_view what, DType* dtype) {
  const uint8_t number = in.U8();
  if (in.ok() && !DTypeIsKnown(number))
    return Unsupported(std::string(what) + " record: dtype " + std::to_string(number) +
                       " is unknown to this build; use a newer modelstore");
  *dtype = static_cast<DType>(number);
  return OkStatus();
}

Status TakeShape(ByteReader& in, std::string_view what, std::vector<uint64_t>* shape) {
  const uint64_t rank = in.Varint();
  if (rank > kMaxRank) return Malformed(what, "rank " + std::to_string(rank) + " exceeds " + std::to_string(kMaxRank));
  for (uint64_t i = 0; i < rank; ++i) shape->push_back(in.Varint());
  return OkStatus();
}

// Counts that drive allocations: `count` items of at least `min_bytes` each must fit into what is left.
bool Fits(const ByteReader& in, uint64_t count, size_t min_bytes) { return count <= in.remaining() / min_bytes; }

bool AddOverflows(uint64_t a, uint64_t b) { return a > std::numeric_limits<uint64_t>::max() - b; }

// Bytes of `shape` elements of `dtype`; false on overflow.
bool ShapeBytes(DType dtype, const std::vector<uint64_t>& shape, uint64_t* bytes) {
  *bytes = DTypeBytes(dtype);
  bool empty = false;
  bool fits = true;
  for (const uint64_t dim : shape) {
    empty |= dim == 0;
    fits = fits && !__builtin_mul_overflow(*bytes, dim, bytes);
  }
  if (empty) *bytes = 0;
  return empty || fits;
}

Status ParseViewSegment(ByteReader& in, ViewSegment* segment) {
  const uint8_t kind = in.U8();
  if (in.ok() && kind > static_cast<uint8_t>(ViewSegment::Kind::kNone))
    return Unsupported("tensor record: view kind " + std::to_string(kind) +
                       " is unknown to this build; use a newer modelstore");
  segment->kind = static_cast<ViewSegment::Kind>(kind);
  segment->elems = in.Varint();
  if (segment->kind == ViewSegment::Kind::kIdentity) {
    segment->base = TakeTensorId(in);
    segment->base_offset_elems = in.Varint();
    if (AddOverflows(segment->base_offset_elems, segment->elems)) return Malformed("tensor", "view out of range");
  }
  if (in.ok() && segment->elems == 0) return Malformed("tensor", "empty view segment");
  return OkStatus();
}

Status ParseExtent(ByteReader& in, Extent* extent) {
  const uint8_t kind = in.U8();
  if (in.ok() && kind > static_cast<uint8_t>(Extent::Kind::kTensorPart))
    return Unsupported("file record: extent kind " + std::to_string(kind) +
                       " is unknown to this build; use a newer modelstore");
  extent->kind = static_cast<Extent::Kind>(kind);
  extent->name = in.String();
  extent->bytes = in.Varint();
  switch (extent->kind) {
    case Extent::Kind::kLiteral: {
      if (extent->bytes > kMaxInlineLiteral)
        return Malformed("file", "literal of " + std::to_string(extent->bytes) + " bytes");
      const ByteSpan literal = in.Take(extent->bytes);
      extent->literal.assign(literal.begin(), literal.end());
      break;
    }
    case Extent::Kind::kTensor:
      extent->tensor = TakeTensorId(in);
      break;
    case Extent::Kind::kTensorPart:
      extent->tensor = TakeTensorId(in);
      extent->offset_bytes = in.Varint();
      if (AddOverflows(extent->offset_bytes, extent->bytes)) return Malformed("file", "extent out of range");
      break;
  }
  return OkStatus();
}

template <typename T>
T BigEndian(T v) {
  if constexpr (sizeof(T) == 8) return static_cast<T>(__builtin_bswap64(v));
  if constexpr (sizeof(T) == 4) return static_cast<T>(__builtin_bswap32(v));
  if constexpr (sizeof(T) == 2) return static_cast<T>(__builtin_bswap16(v));
}

template <typename T>
void AppendBigEndian(std::string& key, T v) {
  v = BigEndian(v);
  key.append(reinterpret_cast<const char*>(&v), sizeof(T));
}

template <typename T>
T ReadBigEndian(std::string_view key, size_t at) {
  T v;
  std::memcpy(&v, key.data() + at, sizeof(T));
  return BigEndian(v);
}

constexpr size_t kTensorKeyBytes = 18;

size_t VarintBytes(uint64_t v) {
  size_t bytes = 1;
  for (; v >= 0x80; v >>= 7) ++bytes;
  return bytes;
}

TensorId TensorIdAt(std::string_view key, size_t at) {
  TensorId id;
  id.hash.high = ReadBigEndian<uint64_t>(key, at);
  id.hash.low = ReadBigEndian<uint64_t>(key, at + 8);
  id.ordinal = ReadBigEndian<uint16_t>(key, at + 16);
  return id;
}

}  // namespace

namespace {

// The record of version 2 around the body that it shares with version 1.
Bytes Packed(ByteSpan body) {
  ByteWriter out;
  out.U8(kPackedVersion);
  AppendPacked(body, out);
  return out.Release();
}

void PutView(ByteWriter& out, const View& view) {
  out.Varint(view.size());
  for (const ViewSegment& segment : view) {
    out.U8(static_cast<uint8_t>(segment.kind));
    out.Varint(segment.elems);
    if (segment.kind != ViewSegment::Kind::kIdentity) continue;
    PutTensorId(out, segment.base);
    out.Varint(segment.base_offset_elems);
  }
}

Status TakeView(ByteReader& in, bool is_packed, View* view, uint64_t* elems) {
  const uint64_t segments = in.Varint();
  if (!Fits(in, segments, 2) || (is_packed && segments > kMaxPackedItems))
    return Malformed("tensor", std::to_string(segments) + " view segments do not fit");
  view->reserve(segments);
  *elems = 0;
  for (uint64_t i = 0; i < segments && in.ok(); ++i) {
    ViewSegment& segment = view->emplace_back();
    RETURN_IF_ERROR(ParseViewSegment(in, &segment));
    if (AddOverflows(*elems, segment.elems)) return Malformed("tensor", "view out of range");
    *elems += segment.elems;
  }
  return OkStatus();
}

// Of a computed tensor: what its record has a view of behind that of its base.
std::span<const InputRole> PartRoles(const EncodingFacts& encoding) {
  const bool has_base = !encoding.roles.empty() && encoding.roles.front() == InputRole::kBase;
  return encoding.roles.subspan(has_base ? 1 : 0);
}

Result<TensorRecord> ParseTensorBody(ByteReader& in, bool is_packed) {
  constexpr std::string_view kWhat = "tensor";
  TensorRecord record;
  RETURN_IF_ERROR(TakeDType(in, kWhat, &record.dtype));
  RETURN_IF_ERROR(TakeShape(in, kWhat, &record.shape));
  record.bytes = in.Varint();
  record.coded_bytes = in.Varint();
  record.push = in.Varint();
  const uint64_t first_block = in.Varint();
  const uint64_t block_count = in.Varint();
  constexpr uint64_t kMaxBlocks = std::numeric_limits<uint32_t>::max();
  if (first_block > kMaxBlocks || block_count > kMaxBlocks - first_block)
    return Malformed(kWhat, "blocks out of range");
  record.first_block = static_cast<uint32_t>(first_block);
  record.block_count = static_cast<uint32_t>(block_count);
  record.depth = in.U8();
  const ByteSpan frame = in.LengthPrefixed();
  record.frame.assign(frame.begin(), frame.end());
  if (record.is_computed() != is_packed)
    return Malformed(kWhat, is_packed ? "version 2, but not computed" : "computed, but not of version 2");
  uint64_t view_elems = 0, part_elems = 0;
  RETURN_IF_ERROR(TakeView(in, is_packed, &record.MutableViewOf(InputRole::kBase), &view_elems));
  if (is_packed) {
    for (const InputRole role : PartRoles(record.encoding()))
      RETURN_IF_ERROR(TakeView(in, is_packed, &record.MutableViewOf(role), &part_elems));
  }
  RETURN_IF_ERROR(CheckEnd(in, kWhat));
  if (is_packed && (record.first_block != 0 || record.block_count != 0 || record.coded_bytes != 0))
    return Malformed(kWhat, "computed, but has blocks");
  // An opaque type's shape is text of its container; only its bytes are known here.
  uint64_t shape_bytes = 0;
  if (record.dtype != DType::kOpaque &&
      (!ShapeBytes(record.dtype, record.shape, &shape_bytes) || shape_bytes != record.bytes))
    return Malformed(kWhat, "its shape does not make " + std::to_string(record.bytes) + " bytes");
  if (!record.ViewOf(InputRole::kBase).empty() && view_elems != record.bytes / DTypeBytes(record.dtype))
    return Malformed(kWhat, "its view covers " + std::to_string(view_elems) + " elements of " +
                                std::to_string(record.bytes / DTypeBytes(record.dtype)));
  return record;
}

// `parse_body` reads a body from the reader it is given and checks that nothing is left.
template <typename ParseBodyFn>
auto ParsePackable(ByteSpan bytes, std::string_view what, const ParseBodyFn& parse_body)
    -> decltype(parse_body(std::declval<ByteReader&>(), false)) {
  ByteReader in(bytes);
  ASSIGN_OR_RETURN(const uint8_t version, TakeVersion(in, what, kPackedVersion));
  if (version != kPackedVersion) return parse_body(in, false);
  const Result<Bytes> body = TakePacked(in);
  if (!body.ok()) return Malformed(what, body.status().message());
  ByteReader body_in(*body);
  return parse_body(body_in, true);
}

}  // namespace

const EncodingFacts& TensorRecord::encoding() const {
  static constexpr EncodingFacts kUnknown{Encoding::kRaw, "unknown", StorageLevel::kRaw, true, true, {}};
  if (frame.empty()) return FactsOf(Encoding::kRaw);
  const EncodingFacts* const facts = FindEncoding(std::to_integer<uint8_t>(frame[0]));
  return facts != nullptr ? *facts : kUnknown;
}

const View& TensorRecord::ViewOf(InputRole role) const {
  static const View kNone;
  const auto found = std::ranges::find(inputs, role, &TensorInput::role);
  return found == inputs.end() ? kNone : found->view;
}

View& TensorRecord::MutableViewOf(InputRole role) {
  const auto found = std::ranges::find(inputs, role, &TensorInput::role);
  return found == inputs.end() ? inputs.emplace_back(role).view : found->view;
}

Bytes Serialize(const TensorRecord& record) {
  const bool is_packed = record.is_computed();
  ByteWriter out;
  if (!is_packed) out.U8(kRecordVersion);
  out.U8(static_cast<uint8_t>(record.dtype));
  PutShape(out, record.shape);
  out.Varint(record.bytes);
  out.Varint(record.coded_bytes);
  out.Varint(record.push);
  out.Varint(record.first_block);
  out.Varint(record.block_count);
  out.U8(record.depth);
  out.LengthPrefixed(record.frame);
  PutView(out, record.ViewOf(InputRole::kBase));
  if (!is_packed) return out.Release();
  for (const InputRole role : PartRoles(record.encoding())) PutView(out, record.ViewOf(role));
  return Packed(out.view());
}

Result<TensorRecord> ParseTensorRecord(ByteSpan bytes) { return ParsePackable(bytes, "tensor", ParseTensorBody); }

namespace {

bool HasParts(const FileRecord& record) {
  return std::any_of(record.extents.begin(), record.extents.end(),
                     [](const Extent& extent) { return extent.kind == Extent::Kind::kTensorPart; });
}

Result<FileRecord> ParseFileBody(ByteReader& in, bool is_packed) {
  constexpr std::string_view kWhat = "file";
  FileRecord record;
  const uint8_t kind = in.U8();
  if (in.ok() && kind > static_cast<uint8_t>(FileKind::kSafetensors))
    return Unsupported("file record: kind " + std::to_string(kind) +
                       " is unknown to this build; use a newer modelstore");
  record.kind = static_cast<FileKind>(kind);
  record.bytes = in.Varint();
  const uint64_t extents = in.Varint();
  if (!Fits(in, extents, 3) || (is_packed && extents > kMaxPackedItems))
    return Malformed(kWhat, std::to_string(extents) + " extents do not fit");
  // Grown by push_back: an extent in memory is larger than its smallest encoding.
  uint64_t covered = 0;
  for (uint64_t i = 0; i < extents && in.ok(); ++i) {
    Extent extent;
    RETURN_IF_ERROR(ParseExtent(in, &extent));
    if (AddOverflows(covered, extent.bytes)) return Malformed(kWhat, "extents out of range");
    covered += extent.bytes;
    record.extents.push_back(std::move(extent));
  }
  RETURN_IF_ERROR(CheckEnd(in, kWhat));
  if (HasParts(record) != is_packed)
    return Malformed(kWhat, is_packed ? "version 2, but no part of a tensor" : "parts of tensors, but not version 2");
  if (covered != record.bytes)
    return Malformed(kWhat,
                     "its extents cover " + std::to_string(covered) + " bytes of " + std::to_string(record.bytes));
  return record;
}

}  // namespace

Bytes Serialize(const FileRecord& record) {
  const bool is_packed = HasParts(record);
  ByteWriter out;
  if (!is_packed) out.U8(kRecordVersion);
  out.U8(static_cast<uint8_t>(record.kind));
  out.Varint(record.bytes);
  out.Varint(record.extents.size());
  for (const Extent& extent : record.extents) {
    out.U8(static_cast<uint8_t>(extent.kind));
    out.String(extent.name);
    out.Varint(extent.bytes);
    switch (extent.kind) {
      case Extent::Kind::kLiteral:
        out.Append(extent.literal);
        break;
      case Extent::Kind::kTensor:
        PutTensorId(out, extent.tensor);
        break;
      case Extent::Kind::kTensorPart:
        PutTensorId(out, extent.tensor);
        out.Varint(extent.offset_bytes);
        break;
    }
  }
  return is_packed ? Packed(out.view()) : out.Release();
}

Result<FileRecord> ParseFileRecord(ByteSpan bytes) { return ParsePackable(bytes, "file", ParseFileBody); }

namespace {

// Version 2 adds owner and groups. A record that has none to say is written as version 1, as builds before them did, so
// that each record has one serialization and ModelDigest stays what it was.
constexpr uint8_t kOwnedModelVersion = 2;
// Version 3 adds what compact models have; owner and groups may then be 0.
constexpr uint8_t kCompactModelVersion = 3;
// Version 4 adds when a file came into the model, and holds times beyond 64 bits of nanoseconds.
constexpr uint8_t kTimedModelVersion = 4;

bool HasOwner(const ModelRecord& record) {
  return record.owner_uid != 0 ||
         std::any_of(record.files.begin(), record.files.end(), [](const ModelFile& file) { return file.gid != 0; });
}

bool HasTimes(const ModelRecord& record) {
  return std::any_of(record.files.begin(), record.files.end(), [](const ModelFile& file) {
    return file.published_ns != 0 || file.mtime_ns != ClampToInt64(file.mtime_ns);
  });
}

uint8_t VersionOf(const ModelRecord& record) {
  if (HasTimes(record)) return kTimedModelVersion;
  if (record.fidelity == Fidelity::kCompact || record.allow_compact || record.derived) return kCompactModelVersion;
  return HasOwner(record) ? kOwnedModelVersion : kRecordVersion;
}

Status TakeDrift(ByteReader& in, ModelRecord* record) {
  constexpr std::string_view kWhat = "model";
  const uint8_t flags = in.U8();
  const uint8_t kind = in.U8();
  record->drift = std::bit_cast<double>(in.U64());
  record->method = in.String();
  if (!in.ok()) return OkStatus();  // the caller's CheckEnd tells
  if (flags > (kAllowCompactFlag | kDerivedFlag))
    return Unsupported("model record: flags " + std::to_string(flags) + "; use a newer modelstore");
  if (kind > static_cast<uint8_t>(DriftKind::kMoments))
    return Unsupported("model record: drift of kind " + std::to_string(kind) +
                       " is unknown to this build; use a newer modelstore");
  record->allow_compact = (flags & kAllowCompactFlag) != 0;
  record->derived = (flags & kDerivedFlag) != 0;
  record->drift_kind = static_cast<DriftKind>(kind);
  if (!std::isfinite(record->drift) || std::signbit(record->drift)) return Malformed(kWhat, "its drift is no number");
  if (record->method.size() > kMaxMethodBytes)
    return Malformed(kWhat, "a method of " + std::to_string(record->method.size()) + " bytes");
  const bool is_compact = record->fidelity == Fidelity::kCompact;
  if (is_compact != (record->drift_kind != DriftKind::kNone) ||
      (!is_compact && (record->drift != 0 || (!record->method.empty() && !record->derived))))
    return Malformed(kWhat, is_compact ? "compact without a drift" : "a drift, but it is exact");
  if (record->derived && (record->base == 0 || record->method.empty()))
    return Malformed(kWhat, "derived without a base or a recipe");
  return OkStatus();
}

}  // namespace

Bytes Serialize(const ModelRecord& record) {
  ByteWriter out;
  const uint8_t version = VersionOf(record);
  const bool owned = version >= kOwnedModelVersion;
  out.U8(version);
  out.Varint(record.id);
  out.String(record.name);
  out.U8(static_cast<uint8_t>(record.fidelity));
  out.U64(static_cast<uint64_t>(record.created_ns));
  out.Varint(record.push);
  out.Varint(record.logical_bytes);
  out.Varint(record.pushed_stored_bytes);
  out.Varint(record.base);
  out.Varint(record.files.size());
  for (const ModelFile& file : record.files) {
    out.String(file.path);
    out.Append(file.sha256);
    out.Varint(file.bytes);
    out.Varint(file.mode);
    if (version < kTimedModelVersion) {
      out.U64(static_cast<uint64_t>(file.mtime_ns));
    } else {
      const timespec mtime = ToTimespec(file.mtime_ns);
      out.U64(static_cast<uint64_t>(mtime.tv_sec));
      out.U32(static_cast<uint32_t>(mtime.tv_nsec));
      out.U64(static_cast<uint64_t>(file.published_ns));
    }
    if (owned) out.Varint(file.gid);
  }
  if (owned) out.Varint(record.owner_uid);
  if (version >= kCompactModelVersion) {
    out.U8(static_cast<uint8_t>((record.allow_compact ? kAllowCompactFlag : 0) | (record.derived ? kDerivedFlag : 0)));
    out.U8(static_cast<uint8_t>(record.drift_kind));
    out.U64(std::bit_cast<uint64_t>(record.drift));
    out.String(record.method);
  }
  return out.Release();
}

Result<ModelRecord> ParseModelRecord(ByteSpan bytes) {
  constexpr std::string_view kWhat = "model";
  ByteReader in(bytes);
  ModelRecord record;
  ASSIGN_OR_RETURN(const uint8_t version, TakeVersion(in, kWhat, kTimedModelVersion));
  const bool owned = version >= kOwnedModelVersion;
  record.id = in.Varint();
  record.name = in.String();
  const uint8_t fidelity = in.U8();
  if (in.ok() && fidelity > static_cast<uint8_t>(Fidelity::kCompact))
    return Unsupported("model record: fidelity " + std::to_string(fidelity) +
                       " is unknown to this build; use a newer modelstore");
  record.fidelity = static_cast<Fidelity>(fidelity);
  record.created_ns = static_cast<int64_t>(in.U64());
  record.push = in.Varint();
  record.logical_bytes = in.Varint();
  record.pushed_stored_bytes = in.Varint();
  record.base = in.Varint();
  const uint64_t files = in.Varint();
  constexpr size_t kMinFileBytes = 1 + 32 + 1 + 1 + 8;
  if (!Fits(in, files, kMinFileBytes)) return Malformed(kWhat, std::to_string(files) + " files do not fit");
  record.files.reserve(files);
  for (uint64_t i = 0; i < files && in.ok(); ++i) {
    ModelFile file;
    file.path = in.String();
    const ByteSpan sha256 = in.Take(file.sha256.size());
    std::copy(sha256.begin(), sha256.end(), file.sha256.begin());
    file.bytes = in.Varint();
    const uint64_t mode = in.Varint();
    file.mtime_ns = static_cast<int64_t>(in.U64());
    if (version >= kTimedModelVersion) {
      const uint32_t ns = in.U32();
      if (ns >= kNsPerSecond) return Malformed(kWhat, "a time of " + std::to_string(ns) + " ns after a second");
      file.mtime_ns = file.mtime_ns * kNsPerSecond + ns;
      file.published_ns = static_cast<int64_t>(in.U64());
    }
    const uint64_t gid = owned ? in.Varint() : 0;
    if (!in.ok()) break;
    if (gid > UINT32_MAX) return Malformed(kWhat, "group " + std::to_string(gid));
    file.gid = static_cast<uint32_t>(gid);
    if ((mode & ~uint64_t{kFileModeBits}) != 0) return Malformed(kWhat, "file mode " + std::to_string(mode));
    file.mode = static_cast<uint32_t>(mode);
    if (const Status status = CheckFilePath(file.path); !status.ok()) return Malformed(kWhat, status.message());
    if (!record.files.empty() && record.files.back().path >= file.path)
      return Malformed(kWhat, "files out of order at " + file.path);
    record.files.push_back(std::move(file));
  }
  const uint64_t owner = owned ? in.Varint() : 0;
  if (version >= kCompactModelVersion) RETURN_IF_ERROR(TakeDrift(in, &record));
  RETURN_IF_ERROR(CheckEnd(in, kWhat));
  if (owner > UINT32_MAX) return Malformed(kWhat, "owner " + std::to_string(owner));
  record.owner_uid = static_cast<uint32_t>(owner);
  if (version != VersionOf(record))
    return Malformed(kWhat, "version " + std::to_string(version) + " of what version " +
                                std::to_string(VersionOf(record)) + " says");
  if (const Status status = CheckModelName(record.name); !status.ok()) return Malformed(kWhat, status.message());
  return record;
}

bool FeatureIsKnown(std::string_view feature) {
  return feature == kCompactFeature || feature == kDerivedFeature || feature == kExecutableFeature;
}

void AddFeature(CatalogMeta* meta, std::string_view feature) {
  std::vector<std::string>& features = meta->features;
  if (std::find(features.begin(), features.end(), feature) == features.end()) features.emplace_back(feature);
}

Bytes Serialize(const CatalogMeta& record) {
  ByteWriter out;
  out.U8(kRecordVersion);
  out.Varint(record.format_version);
  out.Varint(record.features.size());
  for (const std::string& feature : record.features) out.String(feature);
  out.Varint(record.next_model);
  out.Varint(record.next_push);
  out.Varint(record.model_count);
  out.U64(record.model_digest);
  return out.Release();
}

Result<CatalogMeta> ParseCatalogMeta(ByteSpan bytes) {
  constexpr std::string_view kWhat = "catalog";
  ByteReader in(bytes);
  CatalogMeta record;
  RETURN_IF_ERROR(TakeVersion(in, kWhat).status());
  const uint64_t format_version = in.Varint();
  if (in.ok() && format_version != kFormatVersion)
    return Unsupported("the store has format version " + std::to_string(format_version) + ", this build reads " +
                       std::to_string(kFormatVersion) + "; use a newer modelstore");
  const uint64_t features = in.Varint();
  if (features > kMaxFeatures) return Malformed(kWhat, std::to_string(features) + " features");
  for (uint64_t i = 0; i < features && in.ok(); ++i) record.features.push_back(in.String());
  record.next_model = in.Varint();
  record.next_push = in.Varint();
  record.model_count = in.Varint();
  record.model_digest = in.U64();
  RETURN_IF_ERROR(CheckEnd(in, kWhat));
  return record;
}

Bytes Serialize(const SketchRecord& record) {
  ByteWriter out;
  out.U8(kRecordVersion);
  out.U8(static_cast<uint8_t>(record.dtype));
  PutShape(out, record.shape);
  out.Varint(record.values.size());
  for (const uint16_t value : record.values) out.U16(value);
  return out.Release();
}

Result<SketchRecord> ParseSketchRecord(ByteSpan bytes) {
  constexpr std::string_view kWhat = "sketch";
  ByteReader in(bytes);
  SketchRecord record;
  RETURN_IF_ERROR(TakeVersion(in, kWhat).status());
  RETURN_IF_ERROR(TakeDType(in, kWhat, &record.dtype));
  RETURN_IF_ERROR(TakeShape(in, kWhat, &record.shape));
  const uint64_t values = in.Varint();
  if (values > kSketchValues) return Malformed(kWhat, std::to_string(values) + " values");
  for (uint64_t i = 0; i < values && in.ok(); ++i) record.values.push_back(in.U16());
  RETURN_IF_ERROR(CheckEnd(in, kWhat));
  return record;
}

namespace {

constexpr uint8_t kInParts = 0x80;  // in the byte of a usage record's tensor that says its encoding

}  // namespace

Bytes Serialize(const UsageRecord& record) {
  ByteWriter out;
  out.U8(kRecordVersion);
  out.U8(static_cast<uint8_t>(record.kind));
  out.Varint(record.cost_bytes);
  out.Varint(record.literal_bytes);
  out.Varint(record.repeated_bytes);
  out.Varint(record.tensors.size());
  for (const UsageRecord::Tensor& tensor : record.tensors) {
    out.U64(tensor.id);
    out.Varint(tensor.cost_bytes);
    out.Varint(tensor.bytes);
    out.U8(static_cast<uint8_t>(tensor.encoding << 1 | (tensor.is_named ? 1 : 0) | (tensor.in_parts ? kInParts : 0)));
  }
  out.Varint(record.bases.size());
  for (const UsageRecord::Base& base : record.bases) {
    out.U64(base.id);
    out.Varint(base.cost_bytes);
  }
  return out.Release();
}

Result<UsageRecord> ParseUsageRecord(ByteSpan bytes) {
  constexpr std::string_view kWhat = "usage";
  ByteReader in(bytes);
  UsageRecord record;
  RETURN_IF_ERROR(TakeVersion(in, kWhat).status());
  const uint8_t kind = in.U8();
  if (in.ok() && kind > static_cast<uint8_t>(FileKind::kSafetensors))
    return Unsupported("usage record: file kind " + std::to_string(kind) +
                       " is unknown to this build; use a newer modelstore");
  record.kind = static_cast<FileKind>(kind);
  record.cost_bytes = in.Varint();
  record.literal_bytes = in.Varint();
  record.repeated_bytes = in.Varint();
  const uint64_t tensors = in.Varint();
  constexpr size_t kMinTensorBytes = 8 + 1 + 1 + 1;
  if (!Fits(in, tensors, kMinTensorBytes)) return Malformed(kWhat, std::to_string(tensors) + " tensors do not fit");
  record.tensors.resize(tensors);
  for (UsageRecord::Tensor& tensor : record.tensors) {
    tensor.id = in.U64();
    tensor.cost_bytes = in.Varint();
    tensor.bytes = in.Varint();
    const uint8_t how = in.U8();
    tensor.encoding = (how & (kInParts - 1)) >> 1;
    tensor.is_named = (how & 1) != 0;
    tensor.in_parts = (how & kInParts) != 0;
  }
  const uint64_t bases = in.Varint();
  constexpr size_t kMinBaseBytes = 8 + 1;
  if (!Fits(in, bases, kMinBaseBytes)) return Malformed(kWhat, std::to_string(bases) + " bases do not fit");
  record.bases.resize(bases);
  for (UsageRecord::Base& base : record.bases) {
    base.id = in.U64();
    base.cost_bytes = in.Varint();
  }
  RETURN_IF_ERROR(CheckEnd(in, kWhat));
  return record;
}

Bytes Serialize(const UsageTotals& record) {
  ByteWriter out;
  out.U8(kRecordVersion);
  out.Varint(record.next_model);
  out.Varint(record.cost_bytes);
  return out.Release();
}

Result<UsageTotals> ParseUsageTotals(ByteSpan bytes) {
  constexpr std::string_view kWhat = "usage totals";
  ByteReader in(bytes);
  UsageTotals record;
  RETURN_IF_ERROR(TakeVersion(in, kWhat).status());
  record.next_model = in.Varint();
  record.cost_bytes = in.Varint();
  RETURN_IF_ERROR(CheckEnd(in, kWhat));
  return record;
}

uint64_t ModelDigest(const ModelRecord& record) { return Checksum64(Serialize(record)); }

std::string TensorKey(const TensorId& id) {
  std::string key = TensorKeyPrefix(id.hash);
  AppendBigEndian(key, id.ordinal);
  return key;
}

Result<TensorId> ParseTensorKey(std::string_view key) {
  if (key.size() != kTensorKeyBytes)
    return Corruption("tensor key of " + std::to_string(key.size()) + " bytes, expected " +
                      std::to_string(kTensorKeyBytes));
  return TensorIdAt(key, 0);
}

std::string TensorKeyPrefix(const Hash128& hash) {
  std::string key;
  AppendBigEndian(key, hash.high);
  AppendBigEndian(key, hash.low);
  return key;
}

std::string BlockKey(PushId push, uint32_t index) {
  std::string key = BlockKeyPrefix(push);
  AppendBigEndian(key, index);
  return key;
}

std::string BlockKeyPrefix(PushId push) {
  std::string key;
  AppendBigEndian(key, push);
  return key;
}

std::string FileKey(const Sha256Digest& sha256) { return std::string(AsChars(sha256)); }

std::string UsageKey(const Sha256Digest& sha256) { return std::string(kUsagePrefix) + FileKey(sha256); }

uint64_t ShortTensorId(const TensorId& id) { return id.hash.low ^ id.ordinal * 0x9E3779B97F4A7C15ull; }

uint64_t TensorCost(const TensorRecord& record, size_t record_bytes) {
  constexpr uint64_t kBlockKeyBytes = 12;
  uint64_t cost = kTensorKeyBytes + record_bytes + record.coded_bytes + kBlockKeyBytes * record.block_count;
  if (!record.encoding().may_be_base) return cost;
  const View& view = record.ViewOf(InputRole::kBase);
  for (auto segment = view.begin(); segment != view.end(); ++segment) {
    if (segment->kind != ViewSegment::Kind::kIdentity) continue;
    const bool is_new = std::none_of(view.begin(), segment, [&](const ViewSegment& earlier) {
      return earlier.kind == ViewSegment::Kind::kIdentity && earlier.base == segment->base;
    });
    if (is_new) cost += 2 * kTensorKeyBytes;
  }
  if (DTypeIsFloat(record.dtype) && record.bytes / DTypeBytes(record.dtype) >= kSketchMinElems) {
    cost += kTensorKeyBytes + 3 + kSketchValues * sizeof(uint16_t) + VarintBytes(record.shape.size());
    for (const uint64_t dim : record.shape) cost += VarintBytes(dim);
  }
  return cost;
}

uint64_t FileCost(size_t record_bytes) { return sizeof(Sha256Digest) + record_bytes; }

std::string EdgeKey(const TensorId& base, const TensorId& dependent) { return TensorKey(base) + TensorKey(dependent); }

Result<TensorId> ParseEdgeDependent(std::string_view key) {
  if (key.size() != 2 * kTensorKeyBytes)
    return Corruption("edge key of " + std::to_string(key.size()) + " bytes, expected " +
                      std::to_string(2 * kTensorKeyBytes));
  return TensorIdAt(key, kTensorKeyBytes);
}

Hasher128 StartTensorHash(DType dtype, const std::vector<uint64_t>& shape) {
  ByteWriter header;
  header.U8(static_cast<uint8_t>(dtype));
  header.U32(static_cast<uint32_t>(shape.size()));
  for (const uint64_t dim : shape) header.U64(dim);
  Hasher128 hasher;
  hasher.Update(header.view());
  return hasher;
}

Bytes SealBlock(ByteSpan coded) {
  Bytes value(kBlockHeaderBytes + coded.size());
  const uint64_t checksum = Checksum64(coded);
  std::memcpy(value.data(), &checksum, kBlockHeaderBytes);
  if (!coded.empty()) std::memcpy(value.data() + kBlockHeaderBytes, coded.data(), coded.size());
  return value;
}

Result<ByteSpan> OpenBlock(ByteSpan value) {
  if (value.size() < kBlockHeaderBytes)
    return Corruption("block of " + std::to_string(value.size()) + " bytes has no checksum");
  uint64_t expected = 0;
  std::memcpy(&expected, value.data(), kBlockHeaderBytes);
  const ByteSpan coded = value.subspan(kBlockHeaderBytes);
  if (const uint64_t found = Checksum64(coded); found != expected)
    return Corruption("block of " + std::to_string(coded.size()) + " bytes: checksum " +
                      ToHex(std::as_bytes(std::span(&found, 1))) + ", expected " +
                      ToHex(std::as_bytes(std::span(&expected, 1))));
  return coded;
}

}  // namespace modelstore
