#include "tests/integration/write/model_fixture.h"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>
#include <set>

#include "codec/decode/block_decoder.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

// Normal numbers that do not depend on the standard library: the sum of twelve uniform ones.
float Normal(std::mt19937_64& random) {
  float sum = -6.0f;
  for (int i = 0; i < 12; ++i) sum += static_cast<float>(random() >> 40) * 0x1p-24f;
  return sum;
}

Bytes FromFloats(const std::vector<float>& values, DType dtype) {
  Bytes out(values.size() * DTypeBytes(dtype));
  ConvertElements(DType::kF32, dtype, std::as_bytes(std::span(values)), out);
  return out;
}

std::vector<float> ToFloats(const TestTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / DTypeBytes(tensor.dtype));
  ConvertElements(tensor.dtype, DType::kF32, tensor.bytes, std::as_writable_bytes(std::span(values)));
  return values;
}

}  // namespace

::testing::AssertionResult IsOk(const char* expression, const Status& status) {
  if (status.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << expression << ": " << status.ToString();
}

TestTensor RandomTensor(const std::string& name, std::vector<uint64_t> shape, uint64_t seed, DType dtype, float scale) {
  std::mt19937_64 random(seed);
  uint64_t elems = 1;
  for (const uint64_t dim : shape) elems *= dim;
  std::vector<float> values(elems);
  for (float& value : values) value = Normal(random) * scale;
  return {name, dtype, std::move(shape), FromFloats(values, dtype)};
}

TestTensor Finetuned(const TestTensor& base, uint64_t seed, float noise) {
  std::mt19937_64 random(seed);
  std::vector<float> values = ToFloats(base);
  for (float& value : values) value += Normal(random) * noise;
  return {base.name, base.dtype, base.shape, FromFloats(values, base.dtype)};
}

TestTensor Converted(const TestTensor& tensor, DType dtype) {
  return {tensor.name, dtype, tensor.shape, FromFloats(ToFloats(tensor), dtype)};
}

TestTensor Renamed(TestTensor tensor, const std::string& name) {
  tensor.name = name;
  return tensor;
}

Bytes NoiseBytes(uint64_t seed, size_t size) {
  std::mt19937_64 random(seed);
  Bytes out(size);
  for (std::byte& b : out) b = static_cast<std::byte>(random() >> 56);
  return out;
}

std::vector<TestTensor> SmallModel(uint64_t seed) {
  return {RandomTensor("embed", {1024, 128}, seed),
          RandomTensor("layers.0.up", {512, 256}, seed + 1),
          RandomTensor("layers.0.down", {256, 512}, seed + 2),
          RandomTensor("layers.1.up", {512, 256}, seed + 3),
          RandomTensor("layers.0.norm", {2048}, seed + 4),
          RandomTensor("layers.1.norm", {2048}, seed + 5)};
}

std::vector<TestTensor> FinetunedModel(const std::vector<TestTensor>& base, uint64_t seed) {
  std::vector<TestTensor> out;
  for (const TestTensor& tensor : base) out.push_back(Finetuned(tensor, seed++));
  return out;
}

Bytes SafetensorsFile(const std::vector<TestTensor>& tensors) {
  std::string json = "{";
  uint64_t at = 0;
  for (const TestTensor& tensor : tensors) {
    std::string shape;
    for (const uint64_t dim : tensor.shape) shape.append(shape.empty() ? "" : ",").append(std::to_string(dim));
    json.append(json.size() > 1 ? ",\"" : "\"").append(tensor.name).append("\":{\"dtype\":\"");
    json.append(DTypeName(tensor.dtype)).append("\",\"shape\":[").append(shape).append("],\"data_offsets\":[");
    json.append(std::to_string(at)).append(",").append(std::to_string(at + tensor.bytes.size())).append("]}");
    at += tensor.bytes.size();
  }
  json += "}";
  ByteWriter out;
  out.U64(json.size());
  out.Append(AsBytes(json));
  for (const TestTensor& tensor : tensors) out.Append(tensor.bytes);
  return out.Release();
}

Bytes ReadPath(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const ByteSpan bytes = AsBytes(text);
  return Bytes(bytes.begin(), bytes.end());
}

void WritePath(const std::string& path, ByteSpan bytes) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  out.close();
  ASSERT_TRUE(out) << path;
}

ModelTest::ModelTest()
    : job_([](const JobProgress& progress) {
        if (progress.total_bytes > 0) {
          EXPECT_LE(progress.done_bytes, progress.total_bytes) << progress.phase;
        }
      }) {
  std::string pattern = (fs::temp_directory_path() / "modelstore-write-XXXXXX").string();
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  temp_ = pattern;
  fs::permissions(temp_, fs::perms::group_exec | fs::perms::others_exec, fs::perm_options::add);  // modes stay as set
  job_.on_warning = [this](std::string text) { warnings_.push_back(std::move(text)); };
}

ModelTest::~ModelTest() {
  Close();
  std::error_code ignored;
  fs::remove_all(temp_, ignored);
}

namespace {

CatalogOptions Options() {
  CatalogOptions options;
  options.create_if_missing = true;
  options.memory_budget_bytes = 128 << 20;
  options.threads = 2;
  return options;
}

}  // namespace

Catalog& ModelTest::OpenInMemory(std::function<Status(uint64_t)> before_write) {
  Close();
  Result<std::unique_ptr<Catalog>> opened = Catalog::OverStore(NewMemoryStore(std::move(before_write)), "", Options());
  EXPECT_OK(opened.status());
  catalog_ = *std::move(opened);
  return *catalog_;
}

Catalog& ModelTest::Reopen(std::function<Status(uint64_t)> before_write) {
  Close();
  CatalogOptions options = Options();
  options.before_write = std::move(before_write);
  Result<std::unique_ptr<Catalog>> opened = Catalog::Open(store_dir(), options);
  if (!opened.ok()) {
    ADD_FAILURE() << opened.status().ToString();
    std::abort();
  }
  catalog_ = *std::move(opened);
  return *catalog_;
}

std::string ModelTest::WriteSource(const std::string& model, const std::string& file, ByteSpan bytes) {
  const std::string folder = temp_ + "/sources/" + model;
  WritePath(folder + "/" + file, bytes);
  return folder;
}

Result<PushReport> ModelTest::PushWith(const std::string& path, PushOptions options, JobControl& job) {
  ASSIGN_OR_RETURN(const SourceTree source, SourceTree::Scan(path));
  if (options.name.empty()) options.name = source.default_name();
  return Push(catalog(), source, options, job);
}

Result<PushReport> ModelTest::PushPath(const std::string& path, PushOptions options) {
  return PushWith(path, std::move(options), job_);
}

PushReport ModelTest::MustPush(const std::string& path, PushOptions options) {
  Result<PushReport> report = PushPath(path, std::move(options));
  EXPECT_OK(report.status());
  return report.ok() ? *report : PushReport{};
}

Bytes ModelTest::ReadStored(const std::string& model, const std::string& file) {
  const Result<ModelRecord> record = catalog().FindModel(model);
  EXPECT_OK(record.status());
  if (!record.ok()) return {};
  for (const ModelFile& candidate : record->files) {
    if (candidate.path != file) continue;
    const Result<FileRef> opened = catalog().reader().OpenFileByHash(candidate.sha256);
    EXPECT_OK(opened.status());
    if (!opened.ok()) return {};
    Bytes out((*opened)->bytes());
    const Result<size_t> n = catalog().reader().Read(*opened, 0, out);
    EXPECT_OK(n.status());
    EXPECT_EQ(n.ok() ? *n : 0, out.size());
    return out;
  }
  ADD_FAILURE() << model << " has no file " << file;
  return {};
}

void ModelTest::ExpectStored(const std::string& model, const std::string& folder) {
  std::set<std::string> paths;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string path = fs::relative(entry.path(), folder).string();
    paths.insert(path);
    EXPECT_TRUE(ReadStored(model, path) == ReadPath(entry.path().string())) << model << "/" << path;
  }
  const Result<ModelRecord> record = catalog().FindModel(model);
  ASSERT_OK(record.status());
  std::set<std::string> stored;
  for (const ModelFile& file : record->files) stored.insert(file.path);
  EXPECT_EQ(stored, paths);
}

void ModelTest::ExpectClean() {
  const Result<VerifyReport> report = Verify(catalog(), {}, job_);
  ASSERT_OK(report.status());
  for (const VerifyFailure& failure : report->failed)
    ADD_FAILURE() << failure.model << "/" << failure.file << ": " << failure.reason;
}

std::vector<std::string> ModelTest::ModelNames() {
  const Result<std::vector<ModelRecord>> models = catalog().ListModels();
  EXPECT_OK(models.status());
  std::vector<std::string> names;
  if (models.ok()) {
    for (const ModelRecord& model : *models) names.push_back(model.name);
  }
  return names;
}

ModelUsage ModelTest::UsageOf(const std::string& model) {
  const Result<StoreReport> report = MakeReport(catalog());
  EXPECT_OK(report.status());
  if (report.ok()) {
    for (const ModelUsage& usage : report->models) {
      if (usage.name == model) return usage;
    }
  }
  ADD_FAILURE() << "no model " << model << " in the report";
  return {};
}

TensorUsage ModelTest::TensorOf(const std::string& model, const std::string& tensor) {
  const Result<ModelDetail> detail = DescribeModel(catalog(), model);
  EXPECT_OK(detail.status());
  if (detail.ok()) {
    for (const FileUsage& file : detail->files) {
      for (const TensorUsage& usage : file.tensors) {
        if (usage.name == tensor) return usage;
      }
    }
  }
  ADD_FAILURE() << "no tensor " << tensor << " in " << model;
  return {};
}

uint64_t ModelTest::CountKeys(Family family) {
  uint64_t count = 0;
  EXPECT_OK(catalog().store().Scan(family, "", [&](std::string_view, ByteSpan) {
    ++count;
    return OkStatus();
  }));
  return count;
}

}  // namespace modelstore
