// Makes a store of many models to measure ls, report and push with:
//
//   bench_scale_store --template STORE --store NEW [--models 1000] [--shapes same|other]
//   bench_scale_store --store NEW --update FILE...
//
// The second form pushes the files one after the other as the model "measured", each as an update of the one before,
// and prints how long that took and how long at most it kept others from publishing.
//
// STORE holds a base and a finetune of it, pushed for real. NEW gets copies of their records: of every ten models, two
// are bases, six finetunes of the first one, one shares half of its tensors with it and one is the same files again.
// Every copy has tensors, sketches and pushes of its own; the blocks are left out, except for one a push, so that
// records can be counted but no content read. `--shapes other` makes every tensor one-dimensional: then no sketch of
// the store is of a shape that a push looks for.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <random>
#include <thread>

#include "catalog/read/catalog.h"
#include "catalog/write/push.h"
#include "catalog/write/store_usage.h"

namespace modelstore {
namespace {

constexpr Family kAllFamilies[] = {Family::kMeta,   Family::kModels, Family::kFiles,   Family::kTensors,
                                   Family::kBlocks, Family::kEdges,  Family::kSketches};
constexpr Family kBlockFamily[] = {Family::kBlocks};

struct Original {
  TensorRecord record;
  std::optional<SketchRecord> sketch;
};

struct Template {
  FileRecord base, finetune;
  std::map<TensorId, Original> tensors;
  std::set<TensorId> base_tensors;
};

Result<FileRecord> LargestFile(Catalog& catalog, const ModelRecord& model) {
  const auto largest = std::max_element(model.files.begin(), model.files.end(),
                                        [](const ModelFile& a, const ModelFile& b) { return a.bytes < b.bytes; });
  if (largest == model.files.end()) return InvalidArgument("a model of the template has no files");
  ASSIGN_OR_RETURN(const StoredValue value, catalog.store().Get(Family::kFiles, FileKey(largest->sha256)));
  return ParseFileRecord(value.bytes());
}

Result<Template> LoadTemplate(const std::string& dir) {
  CatalogOptions options;
  options.read_only = true;
  ASSIGN_OR_RETURN(const std::unique_ptr<Catalog> catalog, Catalog::Open(dir, options));
  ASSIGN_OR_RETURN(const std::vector<ModelRecord> models, catalog->ListModels());
  Template out;
  for (const ModelRecord& finetune : models) {
    for (const ModelRecord& base : models) {
      if (finetune.base != base.id) continue;
      ASSIGN_OR_RETURN(out.base, LargestFile(*catalog, base));
      ASSIGN_OR_RETURN(out.finetune, LargestFile(*catalog, finetune));
    }
  }
  if (out.finetune.extents.empty()) return InvalidArgument(dir + " holds no finetune and its base");
  for (const FileRecord* file : {&out.base, &out.finetune}) {
    for (const Extent& extent : file->extents) {
      if (extent.kind == Extent::Kind::kLiteral) continue;
      Original& original = out.tensors[extent.tensor];
      if (file == &out.base) out.base_tensors.insert(extent.tensor);
      ASSIGN_OR_RETURN(const StoredValue value, catalog->store().Get(Family::kTensors, TensorKey(extent.tensor)));
      ASSIGN_OR_RETURN(original.record, ParseTensorRecord(value.bytes()));
      const Result<StoredValue> sketch = catalog->store().Get(Family::kSketches, TensorKey(extent.tensor));
      if (!sketch.ok()) continue;
      ASSIGN_OR_RETURN(original.sketch, ParseSketchRecord(sketch->bytes()));
    }
  }
  return out;
}

class Copier {
 public:
  Copier(const Template& original, Catalog& catalog, bool same_shapes)
      : original_(original), catalog_(catalog), same_shapes_(same_shapes) {}

  Status Run(uint64_t models) {
    for (uint64_t i = 0; i < models; ++i) RETURN_IF_ERROR(AddModel(i));
    return catalog_.store().Flush(kAllFamilies);
  }

 private:
  // The copy of a tensor that belongs to model `owner`.
  static TensorId CopyOf(TensorId id, uint64_t owner) {
    id.hash.low ^= (owner + 1) * 0xD6E8FEB86659FD93ull;
    id.hash.high ^= (owner + 1) * 0x9E3779B97F4A7C15ull;
    return id;
  }

  // Sampled values in another order: as far from the original as an unrelated tensor of the same scale.
  SketchRecord CopySketch(const SketchRecord& sketch, uint64_t seed, bool nudge) const {
    SketchRecord copy = sketch;
    std::mt19937_64 random(seed);
    std::shuffle(copy.values.begin(), copy.values.end(), random);
    if (nudge) copy.values[random() % copy.values.size()] ^= 1;
    Reshape(&copy.shape);
    return copy;
  }

  void Reshape(std::vector<uint64_t>* shape) const {
    if (same_shapes_) return;
    uint64_t elems = 1;
    for (const uint64_t dim : *shape) elems *= dim;
    *shape = {elems};
  }

  Status AddTensor(const TensorId& id, uint64_t owner, uint64_t base, WriteBatch* batch) {
    const Original& original = original_.tensors.at(id);
    TensorRecord record = original.record;
    record.push = push_;
    Reshape(&record.shape);
    const TensorId copy = CopyOf(id, owner);
    for (ViewSegment& segment : record.MutableViewOf(InputRole::kBase)) {
      if (segment.kind != ViewSegment::Kind::kIdentity) continue;
      segment.base = CopyOf(segment.base, base);
      batch->Put(Family::kEdges, EdgeKey(segment.base, copy), {});
    }
    batch->Put(Family::kTensors, TensorKey(copy), Serialize(record));
    if (original.sketch)
      batch->Put(Family::kSketches, TensorKey(copy),
                 Serialize(CopySketch(*original.sketch, base * 4096 + id.hash.low % 4096, owner != base)));
    return OkStatus();
  }

  Status AddModel(uint64_t index) {
    const uint64_t role = index % 10;
    const uint64_t family = index - role;
    const bool is_finetune = role >= 1 && role <= 6;
    const bool is_copy = role == 8;
    const uint64_t owner = is_copy ? family : index;
    FileRecord file = is_finetune ? original_.finetune : original_.base;
    ASSIGN_OR_RETURN(CatalogMeta meta, catalog_.Meta());
    push_ = meta.next_push++;
    WriteBatch batch;
    std::set<TensorId> added;
    bool is_shared = false;
    for (Extent& extent : file.extents) {
      if (extent.kind == Extent::Kind::kLiteral) continue;
      const bool of_base = is_finetune && original_.base_tensors.contains(extent.tensor);
      is_shared = role == 7 && !is_shared;
      const uint64_t holder = of_base || is_shared ? family : owner;
      if (holder == index && added.insert(extent.tensor).second)
        RETURN_IF_ERROR(AddTensor(extent.tensor, owner, is_finetune ? family : owner, &batch));
      extent.tensor = CopyOf(extent.tensor, holder);
    }
    ModelFile model_file;
    model_file.path = "model.safetensors";
    model_file.bytes = file.bytes;
    Sha256 name;
    name.Update(AsBytes("model " + std::to_string(owner)));
    model_file.sha256 = name.Finish();
    if (!is_copy) batch.Put(Family::kFiles, FileKey(model_file.sha256), Serialize(file));

    ModelRecord model;
    model.id = meta.next_model++;
    model.name = "model-" + std::to_string(index);
    model.created_ns = static_cast<int64_t>(index);
    model.push = push_;
    model.logical_bytes = file.bytes;
    model.base = is_finetune ? model.id - role : 0;
    model.files = {model_file};
    batch.Put(Family::kModels, model.name, Serialize(model));
    meta.model_count += 1;
    meta.model_digest ^= ModelDigest(model);
    RETURN_IF_ERROR(AddUsage(catalog_.store(), meta, {}, &batch));
    batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
    batch.Put(Family::kBlocks, BlockKey(push_, 0), SealBlock(Bytes(4096)));
    RETURN_IF_ERROR(catalog_.store().Write(batch, Durability::kNone));
    // A blob file a push.
    return catalog_.store().Flush(kBlockFamily);
  }

  const Template& original_;
  Catalog& catalog_;
  const bool same_shapes_;
  PushId push_ = 0;
};

Status Run(const std::string& from, const std::string& to, uint64_t models, bool same_shapes) {
  ASSIGN_OR_RETURN(const Template original, LoadTemplate(from));
  CatalogOptions options;
  options.create_if_missing = true;
  ASSIGN_OR_RETURN(const std::unique_ptr<Catalog> catalog, Catalog::Open(to, options));
  return Copier(original, *catalog, same_shapes).Run(models);
}

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// The longest that somebody had to wait for publishing while `work` ran.
template <typename Work>
double LongestWait(Catalog& catalog, const Work& work) {
  std::atomic<bool> done{false};
  double longest = 0;
  std::thread waiter([&] {
    while (!done) {
      const auto start = std::chrono::steady_clock::now();
      { const MutexLock lock(catalog.publish_mutex()); }
      longest = std::max(longest, Seconds(start));
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  work();
  done = true;
  waiter.join();
  return longest;
}

Status Update(const std::string& dir, const std::vector<std::string>& files) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Catalog> catalog, Catalog::Open(dir, {}));
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(const SourceTree source, SourceTree::Scan(file));
    PushOptions options;
    options.name = "measured";
    options.update = true;
    JobControl job;
    Status status;
    const auto start = std::chrono::steady_clock::now();
    const double wait = LongestWait(*catalog, [&] { status = Push(*catalog, source, options, job).status(); });
    RETURN_IF_ERROR(status);
    std::printf("%s: pushed in %.3f s, publishing waits %.1f ms\n", file.c_str(), Seconds(start), wait * 1e3);
  }
  return OkStatus();
}

}  // namespace
}  // namespace modelstore

int main(int argc, char** argv) {
  CLI::App app("Makes a store of many models to measure with");
  std::string from, to, shapes = "same";
  uint64_t models = 1000;
  std::vector<std::string> updates;
  auto* make = app.add_option("--template", from, "a store with a base and a finetune of it");
  app.add_option("--store", to, "the store to make or to measure")->required();
  app.add_option("--update", updates, "files to push one after the other as one model")->excludes(make);
  app.add_option("--models", models);
  app.add_option("--shapes", shapes)->check(CLI::IsMember({"same", "other"}));
  CLI11_PARSE(app, argc, argv);
  const modelstore::Status status =
      updates.empty() ? modelstore::Run(from, to, models, shapes == "same") : modelstore::Update(to, updates);
  if (!status.ok()) std::fprintf(stderr, "bench_scale_store: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
