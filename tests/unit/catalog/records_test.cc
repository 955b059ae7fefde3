// Records and keys of the catalog: round trips, hostile bytes, order, and the examples in docs/format.md.
#include "catalog/schema/records.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <sstream>

#include "catalog/schema/check.h"
#include "catalog/schema/folder_record.h"
#include "catalog/store/kv_store.h"
#include "codec/support/packed.h"
#include "tests/unit/catalog/timed_model.h"

namespace modelstore {
namespace {

constexpr TensorId kId{{0x1122334455667788, 0x99aabbccddeeff00}, 3};
constexpr TensorId kBase{{1, 2}, 0};

Bytes MakeBytes(std::initializer_list<int> values) {
  Bytes out;
  for (const int v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

TensorRecord SampleTensor() {
  TensorRecord r;
  r.dtype = DType::kBF16;
  r.shape = {6, 4};
  r.bytes = 48;
  r.coded_bytes = 19;
  r.push = 300;
  r.first_block = 7;
  r.block_count = 1;
  r.depth = 1;
  r.frame = MakeBytes({0xaa, 0xbb, 0xcc});
  r.MutableViewOf(InputRole::kBase) = {{ViewSegment::Kind::kIdentity, 20, kBase, 40},
                                       {ViewSegment::Kind::kNone, 4, {}, 0}};
  return r;
}

FileRecord SampleFile() {
  FileRecord r;
  r.kind = FileKind::kSafetensors;
  r.bytes = 61;
  Extent literal{Extent::Kind::kLiteral, 3, {}, 0, MakeBytes({1, 2, 3}), ""};
  Extent tensor{Extent::Kind::kTensor, 48, kId, 0, {}, "model.embed"};
  Extent other{Extent::Kind::kTensor, 10, kBase, 0, {}, "tail"};
  r.extents = {literal, tensor, other};
  return r;
}

// Records of version 2: their bodies are packed.
TensorRecord SampleCompactTensor() {
  TensorRecord r = SampleTensor();
  r.coded_bytes = r.first_block = r.block_count = 0;
  r.depth = 2;
  r.frame = MakeBytes({4, 0xaa, 0xbb});
  r.MutableViewOf(InputRole::kFactors) = {{ViewSegment::Kind::kIdentity, 5, kBase, 1}};
  r.MutableViewOf(InputRole::kResidual) = {{ViewSegment::Kind::kIdentity, 6, {{3, 4}, 0}, 0}};
  r.MutableViewOf(InputRole::kScales) = {{ViewSegment::Kind::kIdentity, 2, {{5, 6}, 1}, 0}};
  return r;
}

FileRecord SampleFileWithParts() {
  FileRecord r = SampleFile();
  r.extents[2].kind = Extent::Kind::kTensorPart;
  r.extents[2].offset_bytes = 200;
  return r;
}

ModelRecord SampleModel() {
  ModelRecord r;
  r.id = 5;
  r.name = "team/llama-ft";
  r.created_ns = -1;
  r.push = 300;
  r.logical_bytes = 61;
  r.pushed_stored_bytes = 30;
  r.base = 4;
  ModelFile file;
  file.path = "a/config.json";
  file.sha256.fill(std::byte{0x5a});
  file.bytes = 61;
  file.mode = 0440;
  file.mtime_ns = 1700000000123456789;
  r.files.push_back(file);
  file.path = "a/weights";
  r.files.push_back(file);
  return r;
}

ModelRecord SampleCompactModel() {
  ModelRecord r = SampleModel();
  r.fidelity = Fidelity::kCompact;
  r.drift_kind = DriftKind::kMoments;
  r.drift = 0.015625;
  r.method = "rank 4";
  return r;
}

CatalogMeta SampleMeta() {
  CatalogMeta r;
  r.features = {"transpose", "gguf"};
  r.next_model = 6;
  r.next_push = 301;
  r.model_count = 1;
  r.model_digest = 0x0123456789abcdef;
  return r;
}

SketchRecord SampleSketch() {
  SketchRecord r;
  r.dtype = DType::kF32;
  r.shape = {1u << 20};
  for (size_t i = 0; i < kSketchValues; ++i) r.values.push_back(static_cast<uint16_t>(i * 1000));
  return r;
}

UsageRecord SampleUsage() {
  UsageRecord r;
  r.kind = FileKind::kSafetensors;
  r.cost_bytes = 129;
  r.literal_bytes = 3;
  r.repeated_bytes = 0;
  r.tensors = {{ShortTensorId(kId), 151, 48, 3, true, false}};
  r.bases = {{ShortTensorId(kBase), 1000}};
  return r;
}

// One record kind, its types erased: parse, and parse then serialize.
struct Kind {
  std::string name;
  Bytes sample;
  std::function<Status(ByteSpan)> parse;
  std::function<Bytes(ByteSpan)> reserialize;
};

template <typename Record>
Kind MakeKind(std::string name, const Record& sample, Result<Record> (*parse)(ByteSpan)) {
  return {std::move(name), Serialize(sample), [parse](ByteSpan b) { return parse(b).status(); },
          [parse](ByteSpan b) { return Serialize(*parse(b)); }};
}

std::vector<Kind> Kinds() {
  return {MakeKind("tensor", SampleTensor(), ParseTensorRecord),
          MakeKind("file", SampleFile(), ParseFileRecord),
          MakeKind("model", SampleModel(), ParseModelRecord),
          MakeKind("timed model", TimedModel(), ParseModelRecord),
          MakeKind("compact model", SampleCompactModel(), ParseModelRecord),
          MakeKind("catalog", SampleMeta(), ParseCatalogMeta),
          MakeKind("sketch", SampleSketch(), ParseSketchRecord),
          MakeKind("usage", SampleUsage(), ParseUsageRecord),
          MakeKind("usage totals", UsageTotals{6, 1280}, ParseUsageTotals),
          MakeKind("folder", FolderRecord{1700000000123456789}, ParseFolderRecord)};
}

std::vector<Kind> PackedKinds() {
  return {MakeKind("compact tensor", SampleCompactTensor(), ParseTensorRecord),
          MakeKind("file with parts", SampleFileWithParts(), ParseFileRecord)};
}

std::vector<Kind> AllKinds() {
  std::vector<Kind> kinds = Kinds();
  for (Kind& kind : PackedKinds()) kinds.push_back(std::move(kind));
  return kinds;
}

TEST(Records, TensorRoundTripKeepsEveryField) {
  const TensorRecord in = SampleTensor();
  const auto out = ParseTensorRecord(Serialize(in));
  ASSERT_TRUE(out.ok()) << out.status().ToString();
  EXPECT_EQ(out->dtype, in.dtype);
  EXPECT_EQ(out->shape, in.shape);
  EXPECT_EQ(out->bytes, in.bytes);
  EXPECT_EQ(out->coded_bytes, in.coded_bytes);
  EXPECT_EQ(out->push, in.push);
  EXPECT_EQ(out->first_block, in.first_block);
  EXPECT_EQ(out->block_count, in.block_count);
  EXPECT_EQ(out->depth, in.depth);
  EXPECT_EQ(out->frame, in.frame);
  ASSERT_EQ(out->ViewOf(InputRole::kBase).size(), 2u);
  EXPECT_EQ(out->ViewOf(InputRole::kBase)[0].kind, ViewSegment::Kind::kIdentity);
  EXPECT_EQ(out->ViewOf(InputRole::kBase)[0].elems, 20u);
  EXPECT_EQ(out->ViewOf(InputRole::kBase)[0].base, kBase);
  EXPECT_EQ(out->ViewOf(InputRole::kBase)[0].base_offset_elems, 40u);
  EXPECT_EQ(out->ViewOf(InputRole::kBase)[1].kind, ViewSegment::Kind::kNone);
  EXPECT_EQ(out->ViewOf(InputRole::kBase)[1].elems, 4u);
}

TEST(Records, FileRoundTripKeepsEveryField) {
  const FileRecord in = SampleFile();
  const auto out = ParseFileRecord(Serialize(in));
  ASSERT_TRUE(out.ok()) << out.status().ToString();
  EXPECT_EQ(out->kind, in.kind);
  EXPECT_EQ(out->bytes, in.bytes);
  ASSERT_EQ(out->extents.size(), in.extents.size());
  for (size_t i = 0; i < in.extents.size(); ++i) {
    EXPECT_EQ(out->extents[i].kind, in.extents[i].kind);
    EXPECT_EQ(out->extents[i].bytes, in.extents[i].bytes);
    EXPECT_EQ(out->extents[i].tensor, in.extents[i].tensor);
    EXPECT_EQ(out->extents[i].offset_bytes, in.extents[i].offset_bytes);
    EXPECT_EQ(out->extents[i].literal, in.extents[i].literal);
    EXPECT_EQ(out->extents[i].name, in.extents[i].name);
  }
}

TEST(Records, ModelRoundTripKeepsEveryField) {
  const ModelRecord in = SampleModel();
  const auto out = ParseModelRecord(Serialize(in));
  ASSERT_TRUE(out.ok()) << out.status().ToString();
  EXPECT_EQ(out->id, in.id);
  EXPECT_EQ(out->name, in.name);
  EXPECT_EQ(out->fidelity, in.fidelity);
  EXPECT_EQ(out->created_ns, in.created_ns);
  EXPECT_EQ(out->push, in.push);
  EXPECT_EQ(out->logical_bytes, in.logical_bytes);
  EXPECT_EQ(out->pushed_stored_bytes, in.pushed_stored_bytes);
  EXPECT_EQ(out->base, in.base);
  ASSERT_EQ(out->files.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(out->files[i].path, in.files[i].path);
    EXPECT_EQ(out->files[i].sha256, in.files[i].sha256);
    EXPECT_EQ(out->files[i].bytes, in.files[i].bytes);
    EXPECT_EQ(out->files[i].mode, in.files[i].mode);
    EXPECT_EQ(out->files[i].mtime_ns, in.files[i].mtime_ns);
  }
}

TEST(Records, AFilesModeSaysWhoReadsAndExecutes) {
  ModelRecord record = SampleModel();
  for (const uint32_t mode : {0u, 0400u, 0444u, 0555u, 0710u & kFileModeBits}) {
    record.files[0].mode = mode;
    const auto out = ParseModelRecord(Serialize(record));
    ASSERT_TRUE(out.ok()) << out.status().ToString();
    EXPECT_EQ(out->files[0].mode, mode);
    EXPECT_EQ(IsExecutable(out->files[0]), (mode & 0111) != 0);
  }
  for (const uint32_t mode : {0200u, 0644u, 02555u}) {
    record.files[0].mode = mode;
    EXPECT_EQ(ParseModelRecord(Serialize(record)).status().code(), StatusCode::kCorruption) << mode;
  }
}

TEST(Records, MetaAndSketchRoundTripKeepEveryField) {
  const auto meta = ParseCatalogMeta(Serialize(SampleMeta()));
  ASSERT_TRUE(meta.ok()) << meta.status().ToString();
  EXPECT_EQ(meta->format_version, kFormatVersion);
  EXPECT_EQ(meta->features, SampleMeta().features);
  EXPECT_EQ(meta->next_model, 6u);
  EXPECT_EQ(meta->next_push, 301u);
  EXPECT_EQ(meta->model_count, 1u);
  EXPECT_EQ(meta->model_digest, 0x0123456789abcdefu);

  const auto sketch = ParseSketchRecord(Serialize(SampleSketch()));
  ASSERT_TRUE(sketch.ok()) << sketch.status().ToString();
  EXPECT_EQ(sketch->dtype, DType::kF32);
  EXPECT_EQ(sketch->shape, SampleSketch().shape);
  EXPECT_EQ(sketch->values, SampleSketch().values);
  EXPECT_LE(Serialize(SampleSketch()).size() + TensorKey(kId).size(), 256u);
}

TEST(Records, UsageRoundTripKeepsEveryField) {
  const auto usage = ParseUsageRecord(Serialize(SampleUsage()));
  ASSERT_TRUE(usage.ok()) << usage.status().ToString();
  EXPECT_EQ(*usage, SampleUsage());
  UsageRecord in_parts = SampleUsage();
  in_parts.tensors[0].in_parts = true;
  const auto again = ParseUsageRecord(Serialize(in_parts));
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(*again, in_parts);
  const auto totals = ParseUsageTotals(Serialize(UsageTotals{6, 1280}));
  ASSERT_TRUE(totals.ok()) << totals.status().ToString();
  EXPECT_EQ(totals->next_model, 6u);
  EXPECT_EQ(totals->cost_bytes, 1280u);
}

TEST(Records, CostOfATensorIsWhatItsRecordsTake) {
  TensorRecord record = SampleTensor();
  const Bytes value = Serialize(record);
  // Its record, one block, one edge; too small for a sketch.
  EXPECT_EQ(TensorCost(record, value.size()), 18 + value.size() + 19 + 12 + EdgeKey(kBase, kId).size());
  // The same base twice is one edge.
  record.MutableViewOf(InputRole::kBase)
      .insert(record.MutableViewOf(InputRole::kBase).begin(), record.MutableViewOf(InputRole::kBase)[0]);
  EXPECT_EQ(TensorCost(record, value.size()), 18 + value.size() + 19 + 12 + 36);
  SketchRecord sketch;
  sketch.dtype = record.dtype;
  sketch.shape = {4, 1, 20000};
  sketch.values.resize(kSketchValues);
  record.shape = sketch.shape;
  record.bytes = 160'000;
  record.MutableViewOf(InputRole::kBase).clear();
  EXPECT_EQ(TensorCost(record, 7), 18 + 7 + 19 + 12 + 18 + Serialize(sketch).size());
}

TEST(Records, ShortIdsOfCollidingTensorsDiffer) {
  TensorId other = kId;
  other.ordinal = 4;
  EXPECT_NE(ShortTensorId(kId), ShortTensorId(other));
  EXPECT_EQ(ShortTensorId(kBase), kBase.hash.low);
}

TEST(Records, EmptyThingsRoundTrip) {
  TensorRecord tensor;
  tensor.dtype = DType::kF32;
  tensor.shape = {0, std::numeric_limits<uint64_t>::max(), 3};
  EXPECT_TRUE(ParseTensorRecord(Serialize(tensor)).ok());
  tensor.shape = {};  // a scalar
  tensor.bytes = 4;
  EXPECT_TRUE(ParseTensorRecord(Serialize(tensor)).ok());
  EXPECT_TRUE(ParseFileRecord(Serialize(FileRecord{})).ok());
  ModelRecord model;
  model.name = "m";
  EXPECT_TRUE(ParseModelRecord(Serialize(model)).ok());
}

TEST(Records, EveryTruncationIsCorruption) {
  for (const Kind& kind : AllKinds()) {
    ASSERT_TRUE(kind.parse(kind.sample).ok()) << kind.name << ": " << kind.parse(kind.sample).ToString();
    for (size_t n = 0; n < kind.sample.size(); ++n) {
      const Bytes cut(kind.sample.begin(), kind.sample.begin() + static_cast<ptrdiff_t>(n));
      EXPECT_EQ(kind.parse(cut).code(), StatusCode::kCorruption) << kind.name << " cut to " << n;
    }
  }
}

TEST(Records, TrailingBytesAreCorruption) {
  for (const Kind& kind : AllKinds()) {
    Bytes longer = kind.sample;
    longer.push_back(std::byte{0});
    EXPECT_EQ(kind.parse(longer).code(), StatusCode::kCorruption) << kind.name;
  }
}

TEST(Records, UnknownVersionIsUnsupported) {
  for (const Kind& kind : AllKinds()) {
    Bytes newer = kind.sample;
    newer[0] = std::byte{5};
    EXPECT_EQ(kind.parse(newer).code(), StatusCode::kUnsupported) << kind.name;
  }
}

// zstd may write the same body in several ways, so those are not canonical; their checksum notices damage.
TEST(Records, DamagedPackedBytesAreNoticed) {
  for (const Kind& kind : PackedKinds()) {
    for (size_t i = 1; i < kind.sample.size(); ++i) {
      for (unsigned bit = 0; bit < 8; ++bit) {
        Bytes damaged = kind.sample;
        damaged[i] ^= static_cast<std::byte>(1u << bit);
        const Status status = kind.parse(damaged);
        // A bit of zstd's frame header may mean nothing.
        if (status.ok()) {
          EXPECT_EQ(kind.reserialize(damaged), kind.sample) << kind.name << ", byte " << i << ", bit " << bit;
        } else {
          EXPECT_EQ(status.code(), StatusCode::kCorruption) << status.ToString();
        }
      }
    }
  }
}

TEST(Records, CompactTensorRoundTripKeepsItsViews) {
  const TensorRecord in = SampleCompactTensor();
  const auto out = ParseTensorRecord(Serialize(in));
  ASSERT_TRUE(out.ok()) << out.status().ToString();
  EXPECT_EQ(out->encoding().encoding, Encoding::kCompact);
  EXPECT_NE(SampleTensor().encoding().encoding, Encoding::kCompact);
  EXPECT_EQ(out->frame, in.frame);
  EXPECT_EQ(out->depth, 2);
  std::vector<TensorId> bases, parts, references;
  ForEachBase(*out, [&](const TensorId& id) { bases.push_back(id); });
  ForEachPart(*out, [&](const TensorId& id) { parts.push_back(id); });
  ForEachReference(*out, [&](const TensorId& id) { references.push_back(id); });
  EXPECT_EQ(bases, (std::vector<TensorId>{kBase}));
  EXPECT_EQ(parts, (std::vector<TensorId>{kBase, {{3, 4}, 0}, {{5, 6}, 1}}));
  EXPECT_EQ(references.size(), 4u);
  EXPECT_EQ(out->ViewOf(InputRole::kFactors)[0].elems, 5u);
  EXPECT_EQ(out->ViewOf(InputRole::kFactors)[0].base_offset_elems, 1u);
  // No edges, no sketch, no blocks.
  EXPECT_EQ(TensorCost(*out, 100), 18u + 100);
}

TEST(Records, FileWithPartsRoundTrips) {
  const auto out = ParseFileRecord(Serialize(SampleFileWithParts()));
  ASSERT_TRUE(out.ok()) << out.status().ToString();
  ASSERT_EQ(out->extents.size(), 3u);
  EXPECT_EQ(out->extents[2].kind, Extent::Kind::kTensorPart);
  EXPECT_EQ(out->extents[2].offset_bytes, 200u);
  EXPECT_EQ(out->extents[2].name, "tail");
}

TEST(Records, CompactModelRoundTripKeepsItsDrift) {
  const auto out = ParseModelRecord(Serialize(SampleCompactModel()));
  ASSERT_TRUE(out.ok()) << out.status().ToString();
  EXPECT_EQ(out->fidelity, Fidelity::kCompact);
  EXPECT_EQ(out->drift_kind, DriftKind::kMoments);
  EXPECT_EQ(out->drift, 0.015625);
  EXPECT_EQ(out->method, "rank 4");
  EXPECT_FALSE(out->allow_compact);
  ModelRecord allowed = SampleModel();
  allowed.allow_compact = true;
  const auto exact = ParseModelRecord(Serialize(allowed));
  ASSERT_TRUE(exact.ok()) << exact.status().ToString();
  EXPECT_TRUE(exact->allow_compact);
  EXPECT_EQ(exact->fidelity, Fidelity::kExact);
}

TEST(Records, ContradictionsOfCompactModelsAreCorruption) {
  const auto code = [](const std::function<void(ModelRecord&)>& change) {
    ModelRecord r = SampleCompactModel();
    change(r);
    return ParseModelRecord(Serialize(r)).status().code();
  };
  EXPECT_EQ(code([](ModelRecord& r) { r.drift = std::numeric_limits<double>::quiet_NaN(); }), StatusCode::kCorruption);
  EXPECT_EQ(code([](ModelRecord& r) { r.drift = -1; }), StatusCode::kCorruption);
  EXPECT_EQ(code([](ModelRecord& r) { r.drift = -0.0; }), StatusCode::kCorruption);
  EXPECT_EQ(code([](ModelRecord& r) { r.drift_kind = DriftKind::kNone; }), StatusCode::kCorruption);
  EXPECT_EQ(code([](ModelRecord& r) { r.method.assign(kMaxMethodBytes + 1, 'x'); }), StatusCode::kCorruption);
  EXPECT_EQ(code([](ModelRecord& r) { r.fidelity = Fidelity::kExact, r.allow_compact = true; }),
            StatusCode::kCorruption);
  // An older version cannot say that a model is compact.
  Bytes older = Serialize(SampleModel());
  ByteReader reader(older);
  reader.U8();
  reader.Varint();
  reader.String();
  older[reader.position()] = std::byte{1};
  EXPECT_EQ(ParseModelRecord(older).status().code(), StatusCode::kCorruption);
}

TEST(Records, PackedBodiesAreBoundedBeforeTheyAreUnpacked) {
  const Bytes good = Serialize(SampleFileWithParts());
  const auto with_size = [&](uint64_t bytes) {
    ByteReader in(good);
    in.U8();
    in.Varint();
    ByteWriter out;
    out.U8(2);
    out.Varint(bytes);
    out.Append(in.Take(in.remaining()));
    return ParseFileRecord(out.view()).status();
  };
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, kMaxAmplifiedBytes, kMaxAmplifiedBytes + 1, kMaxUnpackedBytes,
                               kMaxUnpackedBytes + 1, std::numeric_limits<uint64_t>::max()})
    EXPECT_EQ(with_size(bytes).code(), StatusCode::kCorruption) << bytes;
  EXPECT_NE(with_size(kMaxUnpackedBytes).message().find("says that it holds"), std::string_view::npos);
  // Two frames are not one.
  Bytes twice = good;
  ByteReader in(good);
  in.U8();
  in.Varint();
  const ByteSpan frame = in.Take(in.remaining());
  twice.insert(twice.end(), frame.begin(), frame.end());
  EXPECT_EQ(ParseFileRecord(twice).status().code(), StatusCode::kCorruption);
}

// 3 million segments of one kind are packed into some hundred bytes.
TEST(Records, PackedRecordsHaveABoundedCountOfItems) {
  TensorRecord tensor = SampleCompactTensor();
  tensor.MutableViewOf(InputRole::kResidual).assign((1 << 20) + 1, {ViewSegment::Kind::kNone, 1, {}, 0});
  EXPECT_EQ(ParseTensorRecord(Serialize(tensor)).status().code(), StatusCode::kCorruption);
  tensor.MutableViewOf(InputRole::kResidual).pop_back();
  EXPECT_TRUE(ParseTensorRecord(Serialize(tensor)).ok()) << ParseTensorRecord(Serialize(tensor)).status().ToString();
  FileRecord file = SampleFileWithParts();
  file.extents.resize((1 << 20) + 1, Extent{Extent::Kind::kLiteral, 0, {}, 0, {}, ""});
  EXPECT_EQ(ParseFileRecord(Serialize(file)).status().code(), StatusCode::kCorruption);
  file.extents.pop_back();
  EXPECT_TRUE(ParseFileRecord(Serialize(file)).ok()) << ParseFileRecord(Serialize(file)).status().ToString();
}

TEST(Records, VersionsSayWhatTheRecordsAre) {
  // What is written as one version is refused in the other.
  TensorRecord tensor = SampleCompactTensor();
  tensor.block_count = 1;
  EXPECT_EQ(ParseTensorRecord(Serialize(tensor)).status().code(), StatusCode::kCorruption);
  const auto repack = [](const Bytes& plain) {
    ByteWriter out;
    out.U8(2);
    AppendPacked(ByteSpan(plain).subspan(1), out);
    return out.Release();
  };
  EXPECT_EQ(ParseFileRecord(repack(Serialize(SampleFile()))).status().code(), StatusCode::kCorruption);
  EXPECT_EQ(ParseTensorRecord(repack(Serialize(SampleTensor()))).status().code(), StatusCode::kCorruption);
}

// Whatever parses means exactly its bytes, so that digests and comparisons of records are sound.
TEST(Records, DamagedBytesNeverCrashAndWhatParsesIsCanonical) {
  std::mt19937_64 random(7);
  for (const Kind& kind : Kinds()) {
    for (int round = 0; round < 20000; ++round) {
      Bytes damaged = kind.sample;
      for (uint64_t flips = random() % 4 + 1; flips > 0; --flips)
        damaged[random() % damaged.size()] ^= static_cast<std::byte>(1u << random() % 8);
      const Status status = kind.parse(damaged);
      if (status.ok()) {
        EXPECT_EQ(kind.reserialize(damaged), damaged) << kind.name;
      } else {
        EXPECT_TRUE(status.code() == StatusCode::kCorruption || status.code() == StatusCode::kUnsupported)
            << status.ToString();
      }
    }
  }
}

TEST(Records, RandomBytesNeverCrash) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 20000; ++round) {
    Bytes noise(random() % 200);
    for (std::byte& b : noise) b = static_cast<std::byte>(random());
    if (!noise.empty()) noise[0] = static_cast<std::byte>(1 + round % 3);
    for (const Kind& kind : AllKinds()) (void)kind.parse(noise);
  }
}

// Counts that the bytes cannot hold must be refused before anything of their size is allocated.
TEST(Records, HugeCountsAreRefused) {
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max() / 2;
  ByteWriter tensor;  // version, dtype, rank
  tensor.U8(1);
  tensor.U8(9);
  tensor.Varint(kHuge);
  EXPECT_EQ(ParseTensorRecord(tensor.view()).status().code(), StatusCode::kCorruption);

  ByteWriter views;  // scalar of 4 bytes, no blocks, empty frame, then view segments
  for (const int b : {1, 12, 0, 4, 0, 0, 0, 0, 0, 0}) views.U8(static_cast<uint8_t>(b));
  views.Varint(kHuge);
  EXPECT_EQ(ParseTensorRecord(views.view()).status().code(), StatusCode::kCorruption);

  ByteWriter file;  // version, kind, bytes, extents
  for (const int b : {1, 0, 0}) file.U8(static_cast<uint8_t>(b));
  file.Varint(kHuge);
  EXPECT_EQ(ParseFileRecord(file.view()).status().code(), StatusCode::kCorruption);

  ByteWriter model;
  model.U8(1);
  model.Varint(1);
  model.String("m");
  model.U8(0);
  model.U64(0);
  for (int i = 0; i < 4; ++i) model.Varint(0);
  model.Varint(kHuge);
  EXPECT_EQ(ParseModelRecord(model.view()).status().code(), StatusCode::kCorruption);

  ByteWriter meta;
  meta.U8(1);
  meta.Varint(kFormatVersion);
  meta.Varint(kHuge);
  EXPECT_EQ(ParseCatalogMeta(meta.view()).status().code(), StatusCode::kCorruption);

  ByteWriter sketch;
  for (const int b : {1, 9, 0}) sketch.U8(static_cast<uint8_t>(b));
  sketch.Varint(kHuge);
  EXPECT_EQ(ParseSketchRecord(sketch.view()).status().code(), StatusCode::kCorruption);
}

TEST(Records, ContradictionsAreCorruption) {
  const auto tensor_code = [](const std::function<void(TensorRecord&)>& change) {
    TensorRecord r = SampleTensor();
    change(r);
    return ParseTensorRecord(Serialize(r)).status().code();
  };
  EXPECT_EQ(tensor_code([](TensorRecord& r) { r.bytes = 50; }), StatusCode::kCorruption);
  EXPECT_EQ(tensor_code([](TensorRecord& r) { r.shape = {1ull << 63, 2}; }), StatusCode::kCorruption);
  EXPECT_EQ(tensor_code([](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[1].elems = 5; }),
            StatusCode::kCorruption);
  EXPECT_EQ(tensor_code([](TensorRecord& r) {
              r.MutableViewOf(InputRole::kBase)[0].elems = std::numeric_limits<uint64_t>::max();
            }),
            StatusCode::kCorruption);
  EXPECT_EQ(tensor_code([](TensorRecord& r) {
              r.MutableViewOf(InputRole::kBase).push_back({ViewSegment::Kind::kNone, 0, {}, 0});
            }),
            StatusCode::kCorruption);
  EXPECT_EQ(tensor_code([](TensorRecord& r) { r.first_block = std::numeric_limits<uint32_t>::max(); }),
            StatusCode::kCorruption);
  EXPECT_EQ(tensor_code([](TensorRecord& r) { r.shape.assign(kMaxRank + 1, 1); }), StatusCode::kCorruption);
  EXPECT_EQ(tensor_code([](TensorRecord& r) { r.dtype = static_cast<DType>(kDTypeCount); }), StatusCode::kUnsupported);
  EXPECT_EQ(tensor_code(
                [](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].kind = static_cast<ViewSegment::Kind>(2); }),
            StatusCode::kUnsupported);

  FileRecord file = SampleFile();
  file.bytes = 62;
  EXPECT_EQ(ParseFileRecord(Serialize(file)).status().code(), StatusCode::kCorruption);
  file = SampleFileWithParts();
  file.extents[2].offset_bytes = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(ParseFileRecord(Serialize(file)).status().code(), StatusCode::kCorruption);
  file = SampleFile();
  file.extents[0].literal.assign(kMaxInlineLiteral + 1, std::byte{0});
  file.extents[0].bytes = kMaxInlineLiteral + 1;
  file.bytes = 58 + kMaxInlineLiteral + 1;
  EXPECT_EQ(ParseFileRecord(Serialize(file)).status().code(), StatusCode::kCorruption);

  ModelRecord model = SampleModel();
  std::swap(model.files[0], model.files[1]);
  EXPECT_EQ(ParseModelRecord(Serialize(model)).status().code(), StatusCode::kCorruption);
  model = SampleModel();
  model.files[0].path = "../etc/passwd";
  EXPECT_EQ(ParseModelRecord(Serialize(model)).status().code(), StatusCode::kCorruption);
  model = SampleModel();
  model.files[0].mode = 0644;
  EXPECT_EQ(ParseModelRecord(Serialize(model)).status().code(), StatusCode::kCorruption);
  model = SampleModel();
  model.name = "a//b";
  EXPECT_EQ(ParseModelRecord(Serialize(model)).status().code(), StatusCode::kCorruption);
}

TEST(Records, NewerFormatVersionSaysWhichOne) {
  CatalogMeta meta = SampleMeta();
  meta.format_version = 7;
  const auto parsed = ParseCatalogMeta(Serialize(meta));
  EXPECT_EQ(parsed.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(parsed.status().message().find("version 7"), std::string_view::npos) << parsed.status().message();
}

TEST(Keys, RoundTripAndSizes) {
  EXPECT_EQ(TensorKey(kId).size(), 18u);
  EXPECT_EQ(*ParseTensorKey(TensorKey(kId)), kId);
  EXPECT_TRUE(TensorKey(kId).starts_with(TensorKeyPrefix(kId.hash)));
  EXPECT_EQ(EdgeKey(kBase, kId).size(), 36u);
  EXPECT_EQ(*ParseEdgeDependent(EdgeKey(kBase, kId)), kId);
  EXPECT_TRUE(EdgeKey(kBase, kId).starts_with(TensorKey(kBase)));
  EXPECT_TRUE(BlockKey(300, 7).starts_with(BlockKeyPrefix(300)));
  EXPECT_EQ(BlockKey(300, 7).size(), 12u);
  Sha256Digest sha256{};
  sha256[31] = std::byte{9};
  EXPECT_EQ(FileKey(sha256), std::string(AsChars(sha256)));
  EXPECT_EQ(ParseTensorKey("short").status().code(), StatusCode::kCorruption);
  EXPECT_EQ(ParseEdgeDependent(TensorKey(kId)).status().code(), StatusCode::kCorruption);
}

TEST(Keys, ByteOrderIsNumericOrder) {
  std::vector<std::string> blocks;
  for (const PushId push : {PushId{1}, PushId{2}, PushId{255}, PushId{256}, PushId{1} << 40})
    for (const uint32_t index : {0u, 1u, 255u, 256u, 70000u, 4000000000u}) blocks.push_back(BlockKey(push, index));
  EXPECT_TRUE(std::is_sorted(blocks.begin(), blocks.end()));
  EXPECT_LT(TensorKey({{9, 1}, 0}), TensorKey({{0, 2}, 0}));  // high word first
  EXPECT_LT(TensorKey({{1, 1}, 0x00ff}), TensorKey({{1, 1}, 0x0100}));
}

TEST(Blocks, SealAndOpen) {
  const Bytes coded = MakeBytes({1, 2, 3, 4, 5});
  Bytes value = SealBlock(coded);
  ASSERT_EQ(value.size(), coded.size() + kBlockHeaderBytes);
  const auto opened = OpenBlock(value);
  ASSERT_TRUE(opened.ok());
  EXPECT_TRUE(std::ranges::equal(*opened, coded));
  for (size_t i = 0; i < value.size(); ++i) {
    value[i] ^= std::byte{0x10};
    EXPECT_EQ(OpenBlock(value).status().code(), StatusCode::kCorruption) << i;
    value[i] ^= std::byte{0x10};
  }
  for (size_t n = 0; n < value.size(); ++n) EXPECT_FALSE(OpenBlock(ByteSpan(value).first(n)).ok()) << n;
  EXPECT_TRUE(OpenBlock(SealBlock({})).ok());
}

TEST(TensorHash, DependsOnDtypeAndShape) {
  const Bytes bytes(16);
  const auto hash = [&](DType dtype, const std::vector<uint64_t>& shape) {
    Hasher128 hasher = StartTensorHash(dtype, shape);
    hasher.Update(bytes);
    return hasher.Finish();
  };
  EXPECT_EQ(hash(DType::kF32, {4}), hash(DType::kF32, {4}));
  EXPECT_NE(hash(DType::kF32, {4}), hash(DType::kI32, {4}));
  EXPECT_NE(hash(DType::kF32, {4}), hash(DType::kF32, {2, 2}));
  EXPECT_NE(hash(DType::kF32, {4}), hash(DType::kF32, {4, 1}));
}

// --- CheckCatalog ---

Status PutModel(KvStore& store, const ModelRecord& model) {
  WriteBatch batch;
  batch.Put(Family::kModels, model.name, Serialize(model));
  return store.Write(batch, Durability::kSync);
}

Status PutMeta(KvStore& store, const CatalogMeta& meta) {
  WriteBatch batch;
  batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
  return store.Write(batch, Durability::kSync);
}

TEST(CheckCatalog, NewStorePassesAndPublishedModelsPass) {
  const auto store = NewMemoryStore();
  CatalogMeta meta;
  ASSERT_TRUE(CheckCatalog(*store, &meta).ok());
  EXPECT_EQ(meta.next_push, 1u);
  ModelRecord a = SampleModel(), b = SampleModel();
  b.name = "other";
  b.id = 6;
  ASSERT_TRUE(PutModel(*store, a).ok());
  ASSERT_TRUE(PutModel(*store, b).ok());
  meta.model_count = 2;
  meta.model_digest = ModelDigest(a) ^ ModelDigest(b);
  ASSERT_TRUE(PutMeta(*store, meta).ok());
  EXPECT_TRUE(CheckCatalog(*store).ok()) << CheckCatalog(*store).ToString();
}

TEST(CheckCatalog, VanishedOrChangedModelIsCorruption) {
  const auto store = NewMemoryStore();
  ModelRecord a = SampleModel();
  CatalogMeta meta;
  meta.model_count = 1;
  meta.model_digest = ModelDigest(a);
  ASSERT_TRUE(PutMeta(*store, meta).ok());
  EXPECT_EQ(CheckCatalog(*store).code(), StatusCode::kCorruption);
  a.logical_bytes += 1;
  ASSERT_TRUE(PutModel(*store, a).ok());
  EXPECT_EQ(CheckCatalog(*store).code(), StatusCode::kCorruption);
  a.logical_bytes -= 1;
  ASSERT_TRUE(PutModel(*store, a).ok());
  EXPECT_TRUE(CheckCatalog(*store).ok());
  WriteBatch lost;
  lost.Delete(Family::kMeta, kCatalogMetaKey);
  ASSERT_TRUE(store->Write(lost, Durability::kSync).ok());
  EXPECT_EQ(CheckCatalog(*store).code(), StatusCode::kCorruption);
}

TEST(CheckCatalog, UnknownFeatureIsNamed) {
  const auto store = NewMemoryStore();
  CatalogMeta meta;
  AddFeature(&meta, kCompactFeature);
  AddFeature(&meta, kCompactFeature);
  EXPECT_EQ(meta.features.size(), 1u);
  ASSERT_TRUE(PutMeta(*store, meta).ok());
  EXPECT_TRUE(CheckCatalog(*store).ok());
  meta.features.push_back("transpose");
  ASSERT_TRUE(PutMeta(*store, meta).ok());
  const Status status = CheckCatalog(*store);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("transpose"), std::string_view::npos);
}

// --- docs/format.md ---

// The fenced blocks ```hex NAME of the document; what follows '#' on a line is a comment.
std::map<std::string, Bytes> ExamplesInDocument() {
  const auto root = std::filesystem::path(MODELSTORE_SOURCE_DIR);
  std::ifstream in(root / "docs/format.md");
  std::map<std::string, Bytes> examples;
  std::string line, name;
  while (std::getline(in, line)) {
    if (line.starts_with("```")) {
      name = name.empty() && line.starts_with("```hex ") ? line.substr(7) : "";
      continue;
    }
    if (name.empty()) continue;
    std::istringstream words(line.substr(0, line.find('#')));
    for (std::string word; words >> word;) {
      EXPECT_EQ(word.size(), 2u) << name << ": " << line;
      examples[name].push_back(static_cast<std::byte>(std::stoi(word, nullptr, 16)));
    }
  }
  return examples;
}

TEST(Records, FoldersAboveAModelAreThoseOfItsName) {
  EXPECT_EQ(FoldersAbove("m"), (std::vector<std::string>{""}));
  EXPECT_EQ(FoldersAbove("a/b/c"), (std::vector<std::string>{"", "a", "a/b"}));
}

TEST(Records, DerivedModelsNameWhatTheyAreMadeOf) {
  ModelRecord derived = SampleModel();
  derived.derived = true;
  derived.base = 7;
  derived.method = "layers 3 of 4 dropped";
  const Result<ModelRecord> read = ParseModelRecord(Serialize(derived));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_TRUE(read->derived);
  EXPECT_EQ(read->method, derived.method);
  EXPECT_EQ(Serialize(*read), Serialize(derived));
  ModelRecord bad = derived;
  bad.base = 0;
  EXPECT_EQ(ParseModelRecord(Serialize(bad)).status().code(), StatusCode::kCorruption);
  bad = derived;
  bad.method.clear();
  EXPECT_EQ(ParseModelRecord(Serialize(bad)).status().code(), StatusCode::kCorruption);
}

TEST(FormatDocument, ExamplesAreWhatThisBuildReadsAndWrites) {
  const std::map<std::string, Bytes> examples = ExamplesInDocument();
  const auto example = [&](const std::string& name) {
    const auto found = examples.find(name);
    EXPECT_NE(found, examples.end()) << name;
    return found == examples.end() ? Bytes() : found->second;
  };
  EXPECT_EQ(ToHex(example("tensor-record")), ToHex(Serialize(SampleTensor())));
  EXPECT_EQ(ToHex(example("file-record")), ToHex(Serialize(SampleFile())));
  ModelRecord model = SampleModel();
  model.files.resize(1);
  EXPECT_EQ(ToHex(example("model-record")), ToHex(Serialize(model)));
  ModelFile owned_file{.path = "f", .bytes = 3, .mode = 0440, .gid = 100, .mtime_ns = 2};
  owned_file.sha256.fill(std::byte{0x5a});
  ModelRecord owned;
  owned.id = owned.push = 1;
  owned.name = "m";
  owned.created_ns = 1;
  owned.logical_bytes = 3;
  owned.pushed_stored_bytes = 4;
  owned.owner_uid = 1000;
  owned.files = {owned_file};
  EXPECT_EQ(ToHex(example("owned-model-record")), ToHex(Serialize(owned)));
  ModelRecord compact = owned;
  compact.owner_uid = 0;
  compact.files[0].gid = 0;
  compact.fidelity = Fidelity::kCompact;
  compact.drift_kind = DriftKind::kMoments;
  compact.drift = 0.015625;
  compact.method = "rank 4";
  EXPECT_EQ(ToHex(example("compact-model-record")), ToHex(Serialize(compact)));
  EXPECT_EQ(ToHex(example("timed-model-record")), ToHex(Serialize(TimedModel())));
  CatalogMeta meta = SampleMeta();
  meta.features.clear();
  EXPECT_EQ(ToHex(example("catalog-record")), ToHex(Serialize(meta)));
  SketchRecord sketch = SampleSketch();
  sketch.values = {0x3f80, 0xbf80};
  EXPECT_EQ(ToHex(example("sketch-record")), ToHex(Serialize(sketch)));
  EXPECT_EQ(ToHex(example("usage-record")), ToHex(Serialize(SampleUsage())));
  EXPECT_EQ(ToHex(example("usage-totals")), ToHex(Serialize(UsageTotals{6, 1280})));
  EXPECT_EQ(ToHex(example("folder-record")), ToHex(Serialize(FolderRecord{1700000000123456789})));
  EXPECT_EQ(ToHex(example("tensor-key")), ToHex(AsBytes(TensorKey(kId))));
  EXPECT_EQ(ToHex(example("block-key")), ToHex(AsBytes(BlockKey(300, 7))));
  EXPECT_EQ(ToHex(example("block-value")), ToHex(SealBlock(MakeBytes({1, 2, 3, 4, 5}))));
  // Another zstd may pack them in other bytes.
  const Result<TensorRecord> packed_tensor = ParseTensorRecord(example("compact-tensor-record"));
  ASSERT_TRUE(packed_tensor.ok()) << packed_tensor.status().ToString();
  EXPECT_EQ(ToHex(Serialize(*packed_tensor)), ToHex(Serialize(SampleCompactTensor())));
  const Result<FileRecord> packed_file = ParseFileRecord(example("packed-file-record"));
  ASSERT_TRUE(packed_file.ok()) << packed_file.status().ToString();
  EXPECT_EQ(ToHex(Serialize(*packed_file)), ToHex(Serialize(SampleFileWithParts())));
  // And read, not only written.
  EXPECT_TRUE(ParseTensorRecord(example("tensor-record")).ok());
  EXPECT_TRUE(ParseFileRecord(example("file-record")).ok());
  EXPECT_TRUE(ParseModelRecord(example("model-record")).ok());
  const Result<ModelRecord> parsed = ParseModelRecord(example("owned-model-record"));
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(parsed->owner_uid, 1000u);
  EXPECT_EQ(parsed->files[0].gid, 100u);
  EXPECT_TRUE(ParseCatalogMeta(example("catalog-record")).ok());
  EXPECT_TRUE(ParseSketchRecord(example("sketch-record")).ok());
  EXPECT_TRUE(ParseUsageRecord(example("usage-record")).ok());
  EXPECT_TRUE(ParseUsageTotals(example("usage-totals")).ok());
  EXPECT_TRUE(ParseFolderRecord(example("folder-record")).ok());
}

}  // namespace
}  // namespace modelstore
