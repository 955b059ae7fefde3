#include "catalog/read/view_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/catalog/read_fixture.h"

namespace modelstore {
namespace {

using testing::HasSubstr;

constexpr uint32_t kBlockElems = 1000;

// A view of two bases in blocks of kBlockElems elements, with a gap between them:
//   [0, 2500) elements 500.. of the first, [2500, 2600) none, [2600, 3600) elements 0.. of the second.
class ViewReaderTest : public testing::Test {
 protected:
  static ViewSegment Identity(const TensorId& base, uint64_t offset, uint64_t elems) {
    return {.elems = elems, .base = base, .base_offset_elems = offset};
  }

  std::optional<ViewReader::BlockPart> Find(uint64_t begin, uint64_t elems, DType dtype = DType::kBF16) {
    auto part = views_.InOneBlock(view_, dtype, begin, elems);
    EXPECT_TRUE(part.ok()) << part.status().ToString();
    return part.ok() ? *part : std::nullopt;
  }
  void ExpectPart(uint64_t begin, uint64_t elems, const TensorId& base, uint32_t index, uint64_t offset_bytes) {
    const auto part = Find(begin, elems);
    ASSERT_TRUE(part.has_value()) << begin << ", " << elems;
    EXPECT_EQ(part->base->id, base);
    EXPECT_EQ(part->index, index);
    EXPECT_EQ(part->offset_bytes, offset_bytes);
  }
  // A block of a base as a decode would give it.
  Result<BlockPtr> GetBlock(const OpenTensor& base, uint32_t index) {
    ++blocks_got_;
    const ByteSpan all = builder_.content(base.id);
    const ByteSpan of_block = all.subspan(size_t{index} * kBlockElems * 2, BlockBytes(base.frame, index));
    BlockPtr block = Block::Create(ledger_, of_block.size());
    std::ranges::copy(of_block, block->mutable_bytes().begin());
    return block;
  }
  Result<ViewReader::Elements> Read(uint64_t begin, uint64_t elems) {
    return views_.Read(view_, DType::kBF16, begin, elems,
                       [this](const OpenTensor& base, uint32_t index) { return GetBlock(base, index); });
  }

  StoreBuilder builder_;
  const TensorId first_ = builder_.AddRaw(DType::kBF16, StoreBuilder::Weights(3'000, 1), kBlockElems);
  const TensorId second_ = builder_.AddRaw(DType::kBF16, StoreBuilder::Weights(1'500, 2), kBlockElems);
  const View view_ = {Identity(first_, 500, 2'500),
                      {.kind = ViewSegment::Kind::kNone, .elems = 100, .base = {}},
                      Identity(second_, 0, 1'000)};
  TensorTable tensors_{builder_.store, 1 << 20};
  ViewReader views_{tensors_};
  const std::shared_ptr<Ledger> ledger_ = std::make_shared<Ledger>(1 << 20);
  int blocks_got_ = 0;
};

TEST_F(ViewReaderTest, FindsWhatOneBlockHas) {
  ExpectPart(0, 500, first_, 0, 1'000);  // to the end of a block
  ExpectPart(500, 1'000, first_, 1, 0);  // all of a block
  ExpectPart(2'499, 1, first_, 2, 1'998);
  ExpectPart(2'600, 1'000, second_, 0, 0);
  ExpectPart(3'599, 1, second_, 0, 1'998);
}

TEST_F(ViewReaderTest, FindsNothingWhereItIsNotThatSimple) {
  EXPECT_FALSE(Find(0, 501));               // two blocks
  EXPECT_FALSE(Find(2'400, 101));           // ends in the gap
  EXPECT_FALSE(Find(2'500, 100));           // the gap
  EXPECT_FALSE(Find(2'599, 2));             // begins in the gap
  EXPECT_FALSE(Find(3'500, 101));           // past the view
  EXPECT_FALSE(Find(3'600, 1));             // behind the view
  EXPECT_FALSE(Find(0, 500, DType::kF32));  // another type
  EXPECT_FALSE(Find(UINT64_MAX - 10, 5).has_value());
}

TEST_F(ViewReaderTest, ReadsInPlaceOrAssembles) {
  const ByteSpan first = builder_.content(first_), second = builder_.content(second_);
  auto in_place = Read(600, 300);
  ASSERT_TRUE(in_place.ok()) << in_place.status().ToString();
  EXPECT_NE(in_place->block, nullptr);
  EXPECT_EQ(in_place->buffer, nullptr);
  EXPECT_TRUE(std::ranges::equal(in_place->bytes, first.subspan(2 * 1'100, 600)));
  EXPECT_EQ(blocks_got_, 1);

  auto assembled = Read(1'000, 2'000);
  ASSERT_TRUE(assembled.ok()) << assembled.status().ToString();
  EXPECT_EQ(assembled->block, nullptr);
  EXPECT_EQ(blocks_got_, 1 + 3);
  EXPECT_TRUE(std::ranges::equal(assembled->bytes.first(3'000), first.subspan(3'000, 3'000)));
  EXPECT_TRUE(std::ranges::all_of(assembled->bytes.subspan(3'000, 200), [](std::byte b) { return b == std::byte{}; }));
  EXPECT_TRUE(std::ranges::equal(assembled->bytes.subspan(3'200), second.first(800)));
}

TEST_F(ViewReaderTest, RefusesWhatTheViewLacks) {
  const auto past = Read(3'500, 200);
  ASSERT_FALSE(past.ok());
  EXPECT_THAT(past.status().ToString(), HasSubstr("its view of the base ends before the tensor"));
}

}  // namespace
}  // namespace modelstore
