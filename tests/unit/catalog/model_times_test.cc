// Model records of version 4: times of files.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "catalog/schema/records.h"
#include "tests/unit/catalog/timed_model.h"

namespace modelstore {
namespace {

TEST(ModelTimes, AModelIsWrittenInTheLowestVersionThatHoldsItsTimes) {
  const auto version = [](const ModelRecord& model) {
    const Bytes bytes = Serialize(model);
    const Result<ModelRecord> read = ParseModelRecord(bytes);
    EXPECT_TRUE(read.ok()) << read.status().ToString();
    if (read.ok()) {
      EXPECT_EQ(read->files[0].mtime_ns, model.files[0].mtime_ns);
      EXPECT_EQ(read->files[0].published_ns, model.files[0].published_ns);
      EXPECT_EQ(Serialize(*read), bytes);
    }
    return static_cast<int>(bytes[0]);
  };
  ModelRecord model = TimedModel();
  EXPECT_EQ(version(model), 4);
  model.files[0].published_ns = 0;
  EXPECT_EQ(version(model), 4);
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min(), kMax = std::numeric_limits<int64_t>::max();
  for (const TimeNs mtime_ns : {TimeNs{kMin}, TimeNs{-1}, TimeNs{0}, TimeNs{kMax}}) {
    model.files[0].mtime_ns = mtime_ns;
    EXPECT_EQ(version(model), 1);
  }
  for (const TimeNs mtime_ns :
       {TimeNs{kMin} - 1, TimeNs{kMax} + 1, TimeNs{kMin} * kNsPerSecond, TimeNs{kMax} * kNsPerSecond + 999'999'999}) {
    model.files[0].mtime_ns = mtime_ns;
    EXPECT_EQ(version(model), 4);
  }
  // A second has 10^9 ns, and a version that is not needed is another form of the same.
  Bytes bytes = Serialize(TimedModel());
  const size_t seconds = bytes.size() - 12 - 8 - 4 - 8, ns = seconds + 8, published = ns + 4;
  std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(published), 8, std::byte{0});
  EXPECT_TRUE(ParseModelRecord(bytes).ok());
  std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(ns), 4, std::byte{0x7f});
  EXPECT_EQ(ParseModelRecord(bytes).status().code(), StatusCode::kCorruption);
  std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(seconds), 12, std::byte{0});
  EXPECT_EQ(ParseModelRecord(bytes).status().code(), StatusCode::kCorruption);
}

}  // namespace
}  // namespace modelstore
