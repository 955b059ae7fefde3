// A store made by hand for the tests of catalog/read: tensors of every kind with the bytes they must decode to.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"
#include "codec/decode/block_decoder.h"
#include "codec/decode/frame.h"
#include "codec/encode/exact_encoder.h"

namespace modelstore {

// Passes everything on; Gets of blocks, or of tensors' records, go through a hook first.
class HookedStore final : public KvStore {
 public:
  using Hook = std::function<Status(std::string_view key)>;
  void SetHook(Hook hook) { hook_ = std::move(hook); }  // while nobody reads
  void SetTensorHook(Hook hook) { tensor_hook_ = std::move(hook); }

  Result<StoredValue> Get(Family family, std::string_view key) const override {
    if (family == Family::kBlocks && hook_) RETURN_IF_ERROR(hook_(key));
    if (family == Family::kTensors && tensor_hook_) RETURN_IF_ERROR(tensor_hook_(key));
    return store_->Get(family, key);
  }
  std::vector<Result<StoredValue>> MultiGet(Family family, std::span<const std::string> keys) const override {
    return store_->MultiGet(family, keys);
  }
  Result<std::unique_ptr<const KvReader>> Snapshot() const override { return store_->Snapshot(); }
  Status Write(const WriteBatch& batch, Durability durability) override { return store_->Write(batch, durability); }
  Status Flush(std::span<const Family> families) override { return store_->Flush(families); }
  Status Scan(Family family, std::string_view prefix,
              const std::function<Status(std::string_view, ByteSpan)>& visit) const override {
    return store_->Scan(family, prefix, visit);
  }
  Status ScanKeys(Family family, std::string_view prefix,
                  const std::function<Status(std::string_view)>& visit) const override {
    return store_->ScanKeys(family, prefix, visit);
  }
  Status ScanPrefixes(Family family, size_t prefix_bytes,
                      const std::function<Status(std::string_view)>& visit) const override {
    return store_->ScanPrefixes(family, prefix_bytes, visit);
  }
  Result<BlockSizes> CountBlocks() const override { return store_->CountBlocks(); }
  Status CollectGarbage(const std::function<bool()>& cancelled) override { return store_->CollectGarbage(cancelled); }
  Status CollectBlocks(std::string_view begin, std::string_view end, const std::function<bool()>& cancelled) override {
    return store_->CollectBlocks(begin, end, cancelled);
  }
  Result<uint64_t> DiskBytes() const override { return store_->DiskBytes(); }
  Status VerifyChecksums(const std::function<bool()>& cancelled) override { return store_->VerifyChecksums(cancelled); }

 private:
  std::unique_ptr<KvStore> store_ = NewMemoryStore();
  Hook hook_, tensor_hook_;
};

inline Bytes RandomBytes(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes out(n);
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  return out;
}

class StoreBuilder {
 public:
  struct Known {
    DType dtype;
    Bytes bytes;
    TensorRecord record;
  };

  HookedStore store;

  const Known& known(const TensorId& id) const { return known_.at(id); }
  const Bytes& content(const TensorId& id) const { return known_.at(id).bytes; }

  void Put(Family family, const std::string& key, ByteSpan value) {
    WriteBatch batch;
    batch.Put(family, key, value);
    ASSERT_TRUE(store.Write(batch, Durability::kSync).ok());
  }
  void Delete(Family family, const std::string& key) {
    WriteBatch batch;
    batch.Delete(family, key);
    ASSERT_TRUE(store.Write(batch, Durability::kSync).ok());
  }
  std::string KeyOfBlock(const TensorId& id, uint32_t index) const {
    const TensorRecord& record = known_.at(id).record;
    return BlockKey(record.push, record.first_block + index);
  }

  // Raw blocks of `block_elems` elements.
  TensorId AddRaw(DType dtype, Bytes bytes, uint32_t block_elems) {
    Frame frame = PlainFrame(Encoding::kRaw, dtype, bytes.size() / DTypeBytes(dtype));
    frame.block_elems = block_elems;
    std::vector<Bytes> coded;
    for (uint32_t i = 0; i < frame.BlockCount(); ++i) {
      const ByteSpan block = ByteSpan(bytes).subspan(frame.BlockBegin(i) * DTypeBytes(dtype), BlockBytes(frame, i));
      coded.emplace_back(block.begin(), block.end());
    }
    return AddCoded(frame, std::move(bytes), coded, {}, 0);
  }

  // Coded by the exact encoder with a given encoding. A delta's `view` names tensors of this store.
  TensorId AddEncoded(Encoding encoding, DType dtype, Bytes bytes, std::vector<ViewSegment> view = {},
                      DType coded_dtype = DType::kOpaque) {
    EncodePlan plan;
    plan.encoding = encoding;
    plan.dtype = dtype;
    plan.coded_dtype = coded_dtype == DType::kOpaque ? dtype : coded_dtype;
    plan.elems = bytes.size() / DTypeBytes(dtype);
    const Bytes prediction = encoding == Encoding::kDelta ? Predict(view, plan.coded_dtype) : Bytes();
    uint8_t depth = 0;
    for (const ViewSegment& segment : view) {
      if (segment.kind == ViewSegment::Kind::kIdentity)
        depth = std::max<uint8_t>(depth, known_.at(segment.base).record.depth + 1);
    }
    FrameBuilder builder(plan);
    const auto source_of = [&](const Frame& frame, uint32_t i) {
      return ByteSpan(bytes).subspan(frame.BlockBegin(i) * DTypeBytes(dtype), BlockBytes(frame, i));
    };
    const auto prediction_of = [&](const Frame& frame, uint32_t i) {
      const size_t width = DTypeBytes(plan.coded_dtype);
      return prediction.empty()
                 ? ByteSpan()
                 : ByteSpan(prediction).subspan(frame.BlockBegin(i) * width, frame.BlockElems(i) * width);
    };
    if (builder.needs_statistics()) {
      const Frame& frame = builder.frame();
      for (uint32_t i = 0; i < frame.BlockCount(); ++i)
        builder.AddBlock(i, source_of(frame, i), prediction_of(frame, i));
    }
    auto encoder = std::move(builder).Finish();
    EXPECT_TRUE(encoder.ok()) << encoder.status().ToString();
    const Frame frame = encoder->frame();
    EXPECT_EQ(frame.encoding, encoding) << "the content does not pay for this encoding";
    std::vector<Bytes> coded(frame.BlockCount());
    for (uint32_t i = 0; i < frame.BlockCount(); ++i) {
      const Status status = encoder->Encode(i, source_of(frame, i), prediction_of(frame, i), &coded[i]);
      EXPECT_TRUE(status.ok()) << status.ToString();
    }
    return AddCoded(frame, std::move(bytes), coded, std::move(view), depth);
  }

  // A finetune of all of `base`.
  TensorId AddDelta(const TensorId& base, uint64_t seed) {
    const Known& b = known_.at(base);
    return AddEncoded(Encoding::kDelta, b.dtype, Perturb(b.bytes, DTypeBytes(b.dtype), seed),
                      {{.elems = b.bytes.size() / DTypeBytes(b.dtype), .base = base}});
  }

  // bf16 values like a model's weights.
  static Bytes Weights(size_t elems, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 0.02f);
    Bytes out(elems * 2);
    for (size_t i = 0; i < elems; ++i) {
      const float value = normal(random);
      std::memcpy(out.data() + 2 * i, reinterpret_cast<const std::byte*>(&value) + 2, 2);
    }
    return out;
  }
  // Little-endian elements, some of them moved a little.
  static Bytes Perturb(Bytes bytes, size_t width, uint64_t seed) {
    std::mt19937_64 random(seed);
    for (size_t i = 0; i < bytes.size(); i += width) {
      if (const uint64_t r = random(); r % 2 == 0) bytes[i] ^= static_cast<std::byte>(r >> 8 & 3);
    }
    return bytes;
  }

  // The view's elements converted, straight from the known contents.
  Bytes Predict(const std::vector<ViewSegment>& view, DType coded_dtype) const {
    Bytes out;
    for (const ViewSegment& segment : view) {
      const size_t at = out.size();
      out.resize(at + segment.elems * DTypeBytes(coded_dtype));
      if (segment.kind == ViewSegment::Kind::kNone) continue;
      const Known& base = known_.at(segment.base);
      const size_t width = DTypeBytes(base.dtype);
      ConvertElements(base.dtype, coded_dtype,
                      ByteSpan(base.bytes).subspan(segment.base_offset_elems * width, segment.elems * width),
                      MutableByteSpan(out).subspan(at));
    }
    return out;
  }

  Extent Whole(const TensorId& id) const {
    return {
        .kind = Extent::Kind::kTensor, .bytes = known_.at(id).bytes.size(), .tensor = id, .literal = {}, .name = "t"};
  }
  static Extent Part(const TensorId& id, uint64_t offset, uint64_t bytes) {
    return {.kind = Extent::Kind::kTensorPart,
            .bytes = bytes,
            .tensor = id,
            .offset_bytes = offset,
            .literal = {},
            .name = "p"};
  }
  static Extent Literal(Bytes literal) {
    const uint64_t bytes = literal.size();
    return {.kind = Extent::Kind::kLiteral, .bytes = bytes, .tensor = {}, .literal = std::move(literal), .name = ""};
  }
  Bytes Content(const std::vector<Extent>& extents) const {
    Bytes out;
    for (const Extent& e : extents) {
      ByteSpan part = e.literal;
      if (e.kind != Extent::Kind::kLiteral) part = ByteSpan(content(e.tensor)).subspan(e.offset_bytes, e.bytes);
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }
  Sha256Digest AddFile(std::vector<Extent> extents) {
    FileRecord record;
    for (const Extent& e : extents) record.bytes += e.bytes;
    record.extents = std::move(extents);
    Sha256Digest sha256{};
    const uint64_t number = ++files_;
    std::memcpy(sha256.data(), &number, sizeof(number));
    Put(Family::kFiles, FileKey(sha256), Serialize(record));
    return sha256;
  }

  TensorId AddCoded(const Frame& frame, Bytes bytes, const std::vector<Bytes>& coded, std::vector<ViewSegment> view,
                    uint8_t depth, const std::function<void(TensorRecord*)>& change = nullptr) {
    TensorRecord record;
    record.dtype = frame.dtype;
    record.shape = {frame.elems};
    record.bytes = bytes.size();
    record.push = 7;
    record.first_block = coded.empty() ? 0 : next_block_;
    record.block_count = static_cast<uint32_t>(coded.size());
    record.depth = depth;
    record.frame = SerializeFrame(frame);
    record.MutableViewOf(InputRole::kBase) = std::move(view);
    WriteBatch batch;
    for (const Bytes& block : coded) {
      const Bytes sealed = SealBlock(block);
      record.coded_bytes += sealed.size();
      batch.Put(Family::kBlocks, BlockKey(record.push, next_block_++), sealed);
    }
    if (change) change(&record);
    const TensorId id{Hash128{.low = known_.size() + 1, .high = 0xabcdef}, 0};
    batch.Put(Family::kTensors, TensorKey(id), Serialize(record));
    EXPECT_TRUE(store.Write(batch, Durability::kSync).ok());
    known_[id] = {frame.dtype, std::move(bytes), std::move(record)};
    return id;
  }

 private:
  std::map<TensorId, Known> known_;
  uint32_t next_block_ = 0;
  uint64_t files_ = 0;
};

}  // namespace modelstore
