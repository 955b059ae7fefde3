// The read path with a device: the same bytes as without, whatever the device does.
#include "gpu/engine/gpu_decoder.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <cstdlib>
#include <map>
#include <thread>

#include "gpu/engine/gpu_probe.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

using ::testing::HasSubstr;
using Kind = GpuState::Kind;

class GpuDecoderTest : public ModelTest {
 protected:
  GpuDecoderTest() { SetFault(""); }
  ~GpuDecoderTest() override { unsetenv("MODELSTORE_TEST_GPU"); }

  static void SetFault(const char* fault) { setenv("MODELSTORE_TEST_GPU", fault, 1); }
  static GpuOptions Options(GpuOptions::Mode mode = GpuOptions::Mode::kDevice) {
    GpuOptions options;
    options.mode = mode;
    options.plugin = MODELSTORE_HOST_PLUGIN;
    options.probe_command = {MODELSTORE_PROBE};
    options.memory_bytes = 36 << 20;  // batches of 1 MiB
    return options;
  }
  std::shared_ptr<GpuDecoder> StartDecoder(const GpuOptions& options = Options()) {
    auto decoder = GpuDecoder::Start(options, catalog().pool());
    decoder->WaitUntilStarted();
    return decoder;
  }

  // A base, a finetune of it, and a compact one.
  void PushModels() {
    std::vector<TestTensor> base;
    for (uint64_t i = 0; i < 16; ++i) base.push_back(RandomTensor("layer." + std::to_string(i), {512, 320}, 10 + i));
    base.push_back(RandomTensor("wide", {512, 200}, 40, DType::kF32));
    MustPush(WriteModel("base", base));
    for (const TestTensor& tensor : base) tuned_.push_back(Finetuned(tensor, 77));
    MustPush(WriteModel("tuned", tuned_));
    PushOptions compact;
    compact.compact.emplace();
    compact.compact->choice = CompactChoice{.rank = 4};
    compact.name = "small";
    MustPush(WriteModel("other", FinetunedModel(base, 99)), compact);
  }

  // As a sequential reader does.
  Bytes ReadInOrder(const std::string& model) {
    const ModelRecord record = *catalog().FindModel(model);
    const FileRef file = *catalog().reader().OpenFileByHash(record.files[0].sha256);
    Bytes out(file->bytes());
    constexpr uint64_t kRead = 128 << 10;
    for (uint64_t at = 0; at < out.size(); at += kRead) {
      const MutableByteSpan part = MutableByteSpan(out).subspan(at, std::min<uint64_t>(kRead, out.size() - at));
      const Result<size_t> read = catalog().reader().Read(file, at, part);
      EXPECT_OK(read.status());
      // Slow enough for the host model to be ahead.
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return out;
  }

  std::vector<TestTensor> tuned_;
};

TEST_F(GpuDecoderTest, DecodesWhatIsReadAhead) {
  PushModels();
  const Bytes base = ReadStored("base", "model.safetensors"), tuned = ReadStored("tuned", "model.safetensors"),
              small = ReadStored("small", "model.safetensors");
  const auto decoder = StartDecoder();
  ASSERT_EQ(decoder->state().kind, Kind::kUsed) << decoder->state().reason;
  EXPECT_EQ(decoder->state().name, "host model");
  EXPECT_GT(decoder->state().device_bytes_per_second, 0);
  catalog().reader().SetBatchDecoder(decoder);
  uint64_t decoded = 0;
  const std::pair<const char*, const Bytes*> models[] = {{"base", &base}, {"tuned", &tuned}, {"small", &small}};
  for (const auto& [model, expected] : models) {
    // Until the device had its turn: a reader may be faster.
    for (int attempt = 0; attempt < 50 && decoder->state().decoded_bytes == decoded; ++attempt) {
      catalog().reader().DropCaches();
      EXPECT_EQ(ReadInOrder(model), *expected) << model;
    }
    EXPECT_GT(decoder->state().decoded_bytes, decoded) << model;
    decoded = decoder->state().decoded_bytes;
  }
  EXPECT_EQ(decoder->state().failed_blocks, 0u);
  EXPECT_EQ(decoder->state().failed_batches, 0u);
}

// While it decodes what is read ahead: those blocks, and all others, come from the CPU.
TEST_F(GpuDecoderTest, ADeviceThatDisappearsIsNotMissed) {
  PushModels();
  const Bytes tuned = ReadStored("tuned", "model.safetensors");
  const std::string sign = temp() + "/gone";
  SetFault(("until:" + sign).c_str());
  const auto decoder = StartDecoder();
  ASSERT_EQ(decoder->state().kind, Kind::kUsed) << decoder->state().reason;
  catalog().reader().SetBatchDecoder(decoder);
  WritePath(sign, AsBytes(std::string("now")));
  for (int attempt = 0; attempt < 50 && decoder->state().failed_batches == 0; ++attempt) {
    catalog().reader().DropCaches();
    EXPECT_EQ(ReadInOrder("tuned"), tuned);
  }
  EXPECT_EQ(decoder->state().kind, Kind::kFailed);
  EXPECT_THAT(decoder->state().reason, HasSubstr("fell off the bus"));
  EXPECT_EQ(decoder->batch_bytes(), 0u);
  EXPECT_EQ(decoder->Begin(16 << 20), nullptr);
  catalog().reader().DropCaches();
  EXPECT_EQ(ReadInOrder("tuned"), tuned);
}

// What it calls damaged and the CPU decodes is the device's fault.
TEST_F(GpuDecoderTest, ADeviceThatIsWrongIsNotUsedAgain) {
  PushModels();
  const Bytes tuned = ReadStored("tuned", "model.safetensors");
  const std::string sign = temp() + "/blind";
  SetFault(("blind:" + sign).c_str());
  const auto decoder = StartDecoder();
  ASSERT_EQ(decoder->state().kind, Kind::kUsed) << decoder->state().reason;
  catalog().reader().SetBatchDecoder(decoder);
  WritePath(sign, AsBytes(std::string("now")));
  for (int attempt = 0; attempt < 50 && decoder->state().kind == Kind::kUsed; ++attempt) {
    catalog().reader().DropCaches();
    EXPECT_EQ(ReadInOrder("tuned"), tuned);
  }
  EXPECT_EQ(decoder->state().kind, Kind::kFailed);
  EXPECT_THAT(decoder->state().reason, HasSubstr("but not on the GPU"));
}

// Damage is found by the device and told by the CPU.
TEST_F(GpuDecoderTest, ADamagedBlockIsCorruption) {
  PushModels();
  const TensorId id = [&] {
    const ModelRecord model = *catalog().FindModel("tuned");
    const auto value = catalog().store().Get(Family::kFiles, FileKey(model.files[0].sha256));
    const FileRecord record = *ParseFileRecord(value->bytes());
    for (const Extent& extent : record.extents) {
      if (extent.name == "layer.12") return extent.tensor;  // far enough for whole batches
    }
    return TensorId{};
  }();
  const TensorRecord record = (*catalog().reader().OpenTensorById(id))->record;
  const std::string key = BlockKey(record.push, record.first_block + 1);
  {
    const StoredValue stored = *catalog().store().Get(Family::kBlocks, key);
    const ByteSpan coded = *OpenBlock(stored.bytes());
    Bytes bytes(coded.begin(), coded.end());
    bytes[bytes.size() / 2] ^= std::byte{1};
    bytes = SealBlock(bytes);  // else the checksum would tell, before anybody decodes
    WriteBatch batch;
    batch.Delete(Family::kBlocks, key);
    batch.Put(Family::kBlocks, key, bytes);
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  }
  const auto decoder = StartDecoder();
  ASSERT_EQ(decoder->state().kind, Kind::kUsed) << decoder->state().reason;
  catalog().reader().SetBatchDecoder(decoder);
  const ModelRecord model = *catalog().FindModel("tuned");
  const FileRef file = *catalog().reader().OpenFileByHash(model.files[0].sha256);
  Bytes out(file->bytes());
  for (int attempt = 0; attempt < 50 && decoder->state().failed_blocks == 0; ++attempt) {
    catalog().reader().DropCaches();
    Status status;
    for (uint64_t at = 0; at < out.size(); at += 128 << 10) {
      const MutableByteSpan part = MutableByteSpan(out).subspan(at, std::min<uint64_t>(128 << 10, out.size() - at));
      const Result<size_t> read = catalog().reader().Read(file, at, part);
      if (!read.ok()) status = read.status();
      // Behind the middle of the file the device has its turn first, however slow this machine is.
      for (int wait = 0; wait < 200 && at > out.size() / 2 && decoder->state().failed_blocks == 0; ++wait)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(status.code(), StatusCode::kCorruption);
  }
  EXPECT_GT(decoder->state().failed_blocks, 0u);
  EXPECT_EQ(decoder->state().kind, Kind::kUsed);  // it was right
}

// What is no device for us: each says why, and nobody else notices.
TEST_F(GpuDecoderTest, DevicesThatAreNotUsed) {
  const std::pair<const char*, const char*> faults[] = {{"crash", "crashed (signal 6)"},
                                                        {"wrong", "decodes wrongly"},
                                                        {"full", "out of memory"},
                                                        {"none", "no driver is there"},
                                                        {"gone:0", "fell off the bus"}};
  for (const auto& [fault, reason] : faults) {
    SetFault(fault);
    const auto decoder = StartDecoder();
    EXPECT_EQ(decoder->state().kind, Kind::kNone) << fault;
    EXPECT_THAT(decoder->state().reason, HasSubstr(reason)) << fault;
    EXPECT_EQ(decoder->batch_bytes(), 0u);
  }
  SetFault("");
  GpuOptions options = Options();
  options.device = 3;
  EXPECT_THAT(StartDecoder(options)->state().reason, HasSubstr("no GPU 3"));
  options = Options();
  options.memory_bytes = 1 << 20;
  EXPECT_THAT(StartDecoder(options)->state().reason, HasSubstr("gpu.memory_bytes"));
  options = Options();
  options.plugin = temp() + "/none.so";
  EXPECT_THAT(StartDecoder(options)->state().reason, HasSubstr("none.so"));
  options.plugin = WriteSource("bad", "plugin.so", AsBytes(std::string("no library"))) + "/plugin.so";
  EXPECT_THAT(StartDecoder(options)->state().reason, HasSubstr("does not load"));
  ASSERT_EQ(chmod(options.plugin.c_str(), 0666), 0);
  EXPECT_THAT(StartDecoder(options)->state().reason, HasSubstr("changed by others"));
  options = Options();
  options.probe_command = {temp() + "/no-program"};
  EXPECT_EQ(StartDecoder(options)->state().kind, Kind::kNone);
}

TEST_F(GpuDecoderTest, AutoUsesItOnlyWhereItWins) {
  const auto decoder = StartDecoder(Options(GpuOptions::Mode::kAuto));
  EXPECT_EQ(decoder->state().kind, Kind::kSlower);  // the host model
  EXPECT_GT(decoder->state().cpu_bytes_per_second, decoder->state().device_bytes_per_second);
  EXPECT_EQ(decoder->batch_bytes(), 0u);
  const auto off = StartDecoder(Options(GpuOptions::Mode::kOff));
  EXPECT_EQ(off->state().kind, Kind::kOff);
  EXPECT_EQ(off->Begin(16 << 20), nullptr);
}

TEST_F(GpuDecoderTest, KeepsToItsMemory) {
  for (const uint64_t memory : {uint64_t{48} << 20, uint64_t{100} << 20, uint64_t{4} << 30}) {
    GpuOptions options = Options();
    options.memory_bytes = memory;
    const auto decoder = StartDecoder(options);
    ASSERT_EQ(decoder->state().kind, Kind::kUsed) << decoder->state().reason;
    EXPECT_LE(decoder->state().batch_bytes, 16u << 20);
    EXPECT_LE(PinnedBytes(options), memory);
    EXPECT_GT(PinnedBytes(options), 0u);
  }
}

TEST(DeviceCheckTest, ADriverThatHangsIsGivenUp) {
  setenv("MODELSTORE_TEST_GPU", "hang", 1);
  const Status status = ProbeInChild({MODELSTORE_PROBE}, MODELSTORE_HOST_PLUGIN, 0, std::chrono::seconds(1));
  EXPECT_THAT(std::string(status.message()), HasSubstr("did not answer within 1 s"));
  unsetenv("MODELSTORE_TEST_GPU");
}

TEST(DeviceCheckTest, FindsWhatIsWrong) {
  setenv("MODELSTORE_TEST_GPU", "", 1);
  EXPECT_OK(CheckDevice(MODELSTORE_HOST_PLUGIN, 0));
  setenv("MODELSTORE_TEST_GPU", "wrong", 1);
  const Status wrong = CheckDevice(MODELSTORE_HOST_PLUGIN, 0);
  EXPECT_EQ(wrong.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("differs from byte"));
  unsetenv("MODELSTORE_TEST_GPU");
}

// The corpus has what it promises.
TEST(DeviceCheckTest, TheCorpusIsAwkward) {
  const std::vector<CorpusBlock> blocks = AwkwardBlocks();
  std::map<std::string, size_t> good, bad;
  for (const CorpusBlock& block : blocks) ++(block.is_good ? good : bad)[block.codec];
  EXPECT_GE(good["self"], 20u);
  EXPECT_GE(good["delta"], 20u);
  EXPECT_GE(good["compact"], 20u);
  EXPECT_GE(bad["self"] + bad["delta"], 40u);
}

}  // namespace
}  // namespace modelstore
