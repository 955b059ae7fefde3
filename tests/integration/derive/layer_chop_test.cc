// Variants with layers dropped: what the files say, what they cost, that they pin their source, and what is refused.
#include <gmock/gmock.h>

#include "catalog/derive/derive.h"
#include "codec/tensor/safetensors.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kLayers = 6;
constexpr uint64_t kMaxAddedBytes = 64 << 10;

std::string Layer(uint32_t layer) { return "model.layers." + std::to_string(layer); }

std::vector<TestTensor> LayeredModel(uint64_t seed) {
  std::vector<TestTensor> tensors = {RandomTensor("model.embed_tokens.weight", {512, 128}, seed)};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    tensors.push_back(RandomTensor(Layer(layer) + ".mlp.up.weight", {256, 128}, seed + 10 * layer + 1));
    tensors.push_back(RandomTensor(Layer(layer) + ".norm.weight", {128}, seed + 10 * layer + 2, DType::kF32));
  }
  tensors.push_back(RandomTensor("model.norm.weight", {128}, seed + 3));
  return tensors;
}

class LayerChopTest : public ModelTest {
 protected:
  void SetUp() override {
    model_ = LayeredModel(1);
    folder_ = WriteModel("base", model_);
    WriteText("config.json", R"({"num_hidden_layers": 6, "vocab_size": 512})");
    WriteText("tokenizer.json", "words");
    MustPush(folder_);
  }
  void WriteText(const std::string& file, const std::string& text, const std::string& model = "base") {
    WriteSource(model, file, AsBytes(text));
  }

  Result<PushReport> DeriveDrop(const std::string& spec, const std::string& name = "variant",
                                const std::string& source = "base") {
    DeriveOptions options;
    options.source = source;
    options.name = name;
    options.drop_layers = spec;
    return Derive(catalog(), options, job_);
  }
  PushReport MustDerive(const std::string& spec, const std::string& name = "variant",
                        const std::string& source = "base") {
    Result<PushReport> report = DeriveDrop(spec, name, source);
    EXPECT_OK(report.status());
    return report.ok() ? *report : PushReport{};
  }

  // The tensors of `model` that are left, renumbered.
  static std::vector<TestTensor> Chopped(const std::vector<TestTensor>& model, const std::vector<uint32_t>& kept) {
    std::vector<TestTensor> out;
    for (const TestTensor& tensor : model) {
      std::string name = tensor.name;
      bool stays = !name.starts_with("model.layers.");
      for (uint32_t i = 0; i < kept.size(); ++i) {
        const std::string before = Layer(kept[i]) + ".";
        if (!tensor.name.starts_with(before)) continue;
        name = Layer(i) + "." + tensor.name.substr(before.size());
        stays = true;
      }
      if (stays) out.push_back(Renamed(tensor, name));
    }
    return out;
  }
  void ExpectTensors(const std::string& model, const std::vector<TestTensor>& tensors,
                     const std::string& file = "model.safetensors") {
    const Bytes bytes = ReadStored(model, file);
    const auto header_bytes = SafetensorsHeaderBytes(ByteSpan(bytes).first(8), bytes.size());
    ASSERT_OK(header_bytes.status());
    const auto index = ParseSafetensorsHeader(ByteSpan(bytes).first(*header_bytes), bytes.size());
    ASSERT_OK(index.status());
    ASSERT_EQ(index->tensors.size(), tensors.size());
    uint64_t at = *header_bytes;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorEntry& entry = index->tensors[i];
      EXPECT_EQ(entry.name, tensors[i].name);
      EXPECT_EQ(entry.dtype, tensors[i].dtype);
      EXPECT_EQ(entry.shape, tensors[i].shape);
      EXPECT_EQ(entry.begin, at);
      at = entry.end;
      EXPECT_TRUE(std::ranges::equal(ByteSpan(bytes).subspan(entry.begin, entry.end - entry.begin), tensors[i].bytes))
          << entry.name;
    }
    EXPECT_EQ(at, bytes.size());
  }
  std::string StoredText(const std::string& model, const std::string& file) {
    return std::string(AsChars(ReadStored(model, file)));
  }
  ModelRecord Find(const std::string& name) {
    const Result<ModelRecord> model = catalog().FindModel(name);
    EXPECT_OK(model.status());
    return model.ok() ? *model : ModelRecord{};
  }

  std::vector<TestTensor> model_;
  std::string folder_;
};

TEST_F(LayerChopTest, IsTheModelWithoutTheLayers) {
  const PushReport report = MustDerive("1,3-4");
  ExpectTensors("variant", Chopped(model_, {0, 2, 5}));
  EXPECT_EQ(StoredText("variant", "config.json"), "{\n  \"num_hidden_layers\": 3,\n  \"vocab_size\": 512\n}\n");
  EXPECT_EQ(StoredText("variant", "tokenizer.json"), "words");
  EXPECT_LT(report.stored_bytes, kMaxAddedBytes);
  EXPECT_EQ(report.recipe, "layers 1,3-4 of 6 dropped");
  EXPECT_EQ(report.base, "base");
  EXPECT_EQ(report.self_bytes + report.delta_bytes + report.raw_bytes, 0u);  // not a tensor was coded
  EXPECT_EQ(UsageOf("variant").kind, "derived");
  EXPECT_EQ(UsageOf("variant").recipe, "layers 1,3-4 of 6 dropped");
  EXPECT_EQ(UsageOf("base").kind, "base");
  ExpectClean();
  Reopen();
  ExpectTensors("variant", Chopped(model_, {0, 2, 5}));
}

TEST_F(LayerChopTest, KeepLayersIsTheOtherWayToSayIt) {
  DeriveOptions options{.source = "base", .name = "kept", .keep_layers = "0,2,5"};
  EXPECT_OK(Derive(catalog(), options, job_).status());
  MustDerive("1,3-4");
  EXPECT_EQ(Find("kept").files[1].sha256, Find("variant").files[1].sha256);
  options.drop_layers = "1";
  EXPECT_EQ(Derive(catalog(), options, job_).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(LayerChopTest, PinsItsSource) {
  MustDerive("last:2");
  const Result<RemoveReport> refused = Remove(catalog(), "base", false, job_);
  EXPECT_EQ(refused.status().code(), StatusCode::kHasDependents);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("variant"));
  EXPECT_OK(Remove(catalog(), "variant", false, job_).status());
  EXPECT_OK(Prune(catalog(), false, job_).status());
  ExpectStored("base", folder_);
  ExpectClean();
  EXPECT_OK(Remove(catalog(), "base", false, job_).status());
}

// A source whose content is replaced leaves the variant as it is.
TEST_F(LayerChopTest, OutlivesWhatItsSourceWas) {
  MustDerive("last:2");
  const std::string other = WriteModel("other", LayeredModel(1000));
  PushOptions options;
  options.name = "base";
  options.update = true;
  MustPush(other, options);
  EXPECT_OK(Prune(catalog(), false, job_).status());
  ExpectTensors("variant", Chopped(model_, {0, 1, 2, 3}));
  ExpectClean();
}

TEST_F(LayerChopTest, ASourceReplacedMeanwhileIsBusy) {
  DeriveOptions options{.source = "base", .name = "variant", .drop_layers = "0"};
  options.may_read = [&](const ModelRecord&) {
    PushOptions update;
    update.name = "base";
    update.update = true;
    MustPush(WriteModel("other", LayeredModel(1000)), update);
    return OkStatus();
  };
  const Result<PushReport> report = Derive(catalog(), options, job_);
  EXPECT_EQ(report.status().code(), StatusCode::kBusy);
  EXPECT_THAT(ModelNames(), ElementsAre("base"));
  EXPECT_OK(Prune(catalog(), false, job_).status());
  ExpectClean();
}

TEST_F(LayerChopTest, AFinetuneOfItFindsTheSourcesTensors) {
  MustDerive("1,3-4");
  const std::vector<TestTensor> chopped = Chopped(model_, {0, 2, 5});
  const PushReport report = MustPush(WriteModel("tuned", FinetunedModel(chopped, 77)));
  EXPECT_GT(report.delta_bytes, report.logical_bytes * 9 / 10);
  EXPECT_EQ(TensorOf("tuned", "model.layers.2.mlp.up.weight").base_tensor, "model.layers.5.mlp.up.weight");
  ExpectClean();
}

TEST_F(LayerChopTest, VariantsOfVariants) {
  MustDerive("5", "five");
  MustDerive("0", "four", "five");
  ExpectTensors("four", Chopped(model_, {1, 2, 3, 4}));
  EXPECT_EQ(Find("four").method, "layers 0 of 5 dropped, from: layers 5 of 6 dropped");
  EXPECT_EQ(Remove(catalog(), "five", false, job_).status().code(), StatusCode::kHasDependents);
  ExpectClean();
}

// Neither could be removed any more.
TEST_F(LayerChopTest, IsNotMadeOfItself) {
  MustDerive("5", "five");
  DeriveOptions options{.source = "five", .name = "base", .drop_layers = "0", .update = true};
  EXPECT_EQ(Derive(catalog(), options, job_).status().code(), StatusCode::kInvalidArgument);
  ExpectStored("base", folder_);
}

TEST_F(LayerChopTest, OfACompactModelIsCompactToo) {
  PushOptions options;
  options.compact.emplace();
  options.compact->choice = CompactChoice{.rank = 4};
  options.name = "small";
  const std::string tuned = WriteModel("tuned", FinetunedModel(model_, 50));
  WriteText("config.json", R"({"num_hidden_layers": 6})", "tuned");
  MustPush(tuned, options);
  const PushReport report = MustDerive("1,3-4", "variant", "small");
  EXPECT_LT(report.stored_bytes, kMaxAddedBytes);
  EXPECT_EQ(report.fidelity, Fidelity::kCompact);
  EXPECT_EQ(report.drift, Find("small").drift);
  EXPECT_GT(report.drift, 0);
  Reopen();
  EXPECT_EQ(Find("variant").fidelity, Fidelity::kCompact);
  // The same bytes that the compact model reads as.
  const Bytes whole = ReadStored("small", "model.safetensors"), part = ReadStored("variant", "model.safetensors");
  const auto last = [](const Bytes& bytes, size_t n) { return ByteSpan(bytes).last(n); };
  const size_t tail = 128 * 2 + 128 * 4 + 256 * 128 * 2;  // the norm at the end, and the last layer
  EXPECT_TRUE(std::ranges::equal(last(whole, tail), last(part, tail)));
  EXPECT_OK(Prune(catalog(), false, job_).status());
  ExpectClean();
}

TEST_F(LayerChopTest, ShardsAndTheirIndex) {
  std::vector<TestTensor> first(model_.begin(), model_.begin() + 5), middle(model_.begin() + 5, model_.begin() + 9),
      last(model_.begin() + 9, model_.end());
  WriteSource("sharded", "model-1.safetensors", SafetensorsFile(first));
  WriteSource("sharded", "model-2.safetensors", SafetensorsFile(middle));
  const std::string folder = WriteSource("sharded", "model-3.safetensors", SafetensorsFile(last));
  WriteSource("sharded", "consolidated.safetensors", SafetensorsFile(model_));
  WriteText("pytorch_model.bin", "pickle", "sharded");
  WriteText("config.json", R"({"num_hidden_layers": 6})", "sharded");
  std::string map;
  const auto add = [&](const std::vector<TestTensor>& tensors, const std::string& file) {
    for (const TestTensor& tensor : tensors) map += (map.empty() ? "\"" : ",\"") + tensor.name + "\":\"" + file + "\"";
  };
  add(first, "model-1.safetensors");
  add(middle, "model-2.safetensors");
  add(last, "model-3.safetensors");
  WriteText("model.safetensors.index.json", "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {" + map + "}}",
            "sharded");
  MustPush(folder);
  const PushReport report = MustDerive("2-3", "variant", "sharded");  // all that the second file has
  std::vector<std::string> paths;
  for (const ModelFile& file : Find("variant").files) paths.push_back(file.path);
  EXPECT_THAT(paths,
              ElementsAre("config.json", "model-1.safetensors", "model-3.safetensors", "model.safetensors.index.json"));
  ExpectTensors("variant", first, "model-1.safetensors");
  ExpectTensors("variant", Chopped(last, {0, 1, 4, 5}), "model-3.safetensors");
  const std::string index = StoredText("variant", "model.safetensors.index.json");
  EXPECT_THAT(index, HasSubstr("\"model.layers.2.mlp.up.weight\": \"model-3.safetensors\""));
  EXPECT_THAT(index, Not(HasSubstr("model-2")));
  EXPECT_THAT(index, Not(HasSubstr("model.layers.4")));
  EXPECT_THAT(index,
              HasSubstr("\"total_size\": " + std::to_string(512 * 128 * 2 + 4 * (256 * 128 * 2 + 128 * 4) + 128 * 2)));
  EXPECT_LT(report.stored_bytes, kMaxAddedBytes);
  EXPECT_EQ(warnings_.size(), 2u);  // the other weights were left out
  ExpectClean();
}

TEST_F(LayerChopTest, AutoTakesTheMomentsInfluences) {
  const auto moments_of = [&](const std::string& name, const std::vector<float>& influence) {
    std::vector<TestTensor> tensors;
    for (uint32_t layer = 0; layer < influence.size(); ++layer) {
      const ByteSpan bytes = std::as_bytes(std::span(influence).subspan(layer, 1));
      tensors.push_back({Layer(layer) + ".influence", DType::kF32, {}, Bytes(bytes.begin(), bytes.end())});
    }
    return WriteSource(name, "m.safetensors", SafetensorsFile(tensors)) + "/m.safetensors";
  };
  const auto derive = [&](const std::string& path) {
    const Result<SourceTree> moments = SourceTree::Scan(path);
    EXPECT_OK(moments.status());
    DeriveOptions options{.source = "base", .name = "variant", .drop_layers = "auto:2"};
    options.moments = &*moments;
    return Derive(catalog(), options, job_);
  };
  EXPECT_OK(derive(moments_of("good", {.5f, .1f, .4f, .3f, .2f, .6f})).status());
  ExpectTensors("variant", Chopped(model_, {0, 2, 3, 5}));
  EXPECT_THAT(std::string(DeriveDrop("auto:2", "x").status().message()), HasSubstr("--moments"));
  EXPECT_OK(Remove(catalog(), "variant", false, job_).status());
  for (const std::vector<float>& bad : {std::vector<float>{.5f, .1f, .4f}, {.5f, .1f, NAN, .3f, .2f, .6f}})
    EXPECT_EQ(derive(moments_of("bad" + std::to_string(bad.size()), bad)).status().code(),
              StatusCode::kInvalidArgument);
}

TEST_F(LayerChopTest, RefusesWhatItCannotMake) {
  EXPECT_EQ(DeriveDrop("6").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DeriveDrop("0-5").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DeriveDrop("0", "base").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DeriveDrop("0", "../x").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DeriveDrop("0", "x", "nobody").status().code(), StatusCode::kNotFound);
  EXPECT_OK(DeriveDrop("0").status());
  EXPECT_EQ(DeriveDrop("0").status().code(), StatusCode::kAlreadyExists);

  MustPush(WriteModel("flat", {RandomTensor("embed", {512, 128}, 1)}));
  EXPECT_THAT(std::string(DeriveDrop("0", "x", "flat").status().message()), HasSubstr("--layer-names"));
  WriteText("notes.txt", "none", "files");
  MustPush(temp() + "/sources/files");
  EXPECT_EQ(DeriveDrop("0", "x", "files").status().code(), StatusCode::kUnsupported);
  WriteText("config.json", R"({"num_hidden_layers": 7})", "wrong");
  MustPush(WriteModel("wrong", LayeredModel(2)));
  EXPECT_THAT(std::string(DeriveDrop("0", "x", "wrong").status().message()), HasSubstr("has 6 layers"));
  // A file that calls itself safetensors.
  WriteText("model.safetensors", "junk", "junk");
  MustPush(temp() + "/sources/junk");
  EXPECT_EQ(DeriveDrop("0", "x", "junk").status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(ModelNames(), ElementsAre("base", "files", "flat", "junk", "variant", "wrong"));
}

// The store is sound, whatever a model's own files say.
TEST_F(LayerChopTest, WhatIsWrongWithTheSourceIsNoCorruption) {
  const auto refused = [&](const std::string& name) {
    MustPush(temp() + "/sources/" + name);
    const Status status = DeriveDrop("0", "x", name).status();
    EXPECT_EQ(status.code(), StatusCode::kUnsupported) << name << ": " << status.ToString();
    return std::string(status.message());
  };
  WriteModel("config", model_);
  WriteText("config.json", R"({"num_hidden_layers": 6,})", "config");
  EXPECT_THAT(refused("config"), HasSubstr("config.json is no JSON object"));
  WriteModel("index", model_);
  WriteText("config.json", R"({"num_hidden_layers": 6})", "index");
  WriteText("model.safetensors.index.json", R"({"weight_map": )", "index");
  EXPECT_THAT(refused("index"), HasSubstr("index"));
  WriteModel("names", model_);
  WriteText("config.json", R"({"num_hidden_layers": 6, "quantization_config": {"ignore": ["decoder.layers.1.x"]}})",
            "names");
  EXPECT_THAT(refused("names"), HasSubstr("quantization_config.ignore"));
  WriteModel("incomplete", model_);
  WriteText("config.json", R"({"num_hidden_layers": 6})", "incomplete");
  WriteText("model.safetensors.index.json",
            R"({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}})",
            "incomplete");
  EXPECT_THAT(refused("incomplete"), HasSubstr("model-2.safetensors, model-3.safetensors"));
}

TEST_F(LayerChopTest, SettingsOfLayersFollow) {
  std::vector<TestTensor> adapter;
  for (uint32_t layer = 0; layer < kLayers; ++layer)
    adapter.push_back(RandomTensor("base_model.model." + Layer(layer) + ".mlp.up.lora_A.weight", {8, 128}, 70 + layer));
  WriteSource("adapted", "adapter_model.safetensors", SafetensorsFile(adapter));
  const std::string folder = WriteModel("adapted", model_);
  WriteText("config.json", R"({"num_hidden_layers": 6, "layer_types": ["a", "b", "c", "d", "e", "f"],
                              "quantization_config": {"ignore": ["model.layers.4.mlp", "model.layers.5.mlp"]}})",
            "adapted");
  WriteText("adapter_config.json", R"({"layers_to_transform": [0, 4, 5]})", "adapted");
  WriteText("generation_config.json", R"({"top_k":  6})", "adapted");
  MustPush(folder);
  MustDerive("1,3-4", "variant", "adapted");
  std::vector<TestTensor> left;
  for (const uint32_t layer : {0u, 2u, 5u})
    left.push_back(Renamed(adapter[layer],
                           "base_model.model." + Layer(static_cast<uint32_t>(left.size())) + ".mlp.up.lora_A.weight"));
  ExpectTensors("variant", left, "adapter_model.safetensors");
  ExpectTensors("variant", Chopped(model_, {0, 2, 5}));
  const std::string config = StoredText("variant", "config.json");
  EXPECT_THAT(config, HasSubstr("\"model.layers.2.mlp\"\n"));
  EXPECT_THAT(config, Not(HasSubstr("model.layers.4")));
  EXPECT_THAT(StoredText("variant", "adapter_config.json"), HasSubstr("0,\n    2\n"));
  EXPECT_EQ(StoredText("variant", "generation_config.json"), R"({"top_k":  6})");
  EXPECT_TRUE(warnings_.empty());

  // With an index the adapter is no part of the checkpoint, and its configuration goes with it.
  WriteText("model.safetensors.index.json", R"({"weight_map": {"a": "model.safetensors"}})", "adapted");
  PushOptions options;
  options.name = "indexed";
  MustPush(folder, options);
  MustDerive("1", "without", "indexed");
  std::vector<std::string> paths;
  for (const ModelFile& file : Find("without").files) paths.push_back(file.path);
  EXPECT_THAT(
      paths, ElementsAre("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"));
  EXPECT_EQ(warnings_.size(), 2u);
  ExpectClean();
}

}  // namespace
}  // namespace modelstore
