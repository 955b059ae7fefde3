#include "catalog/write/report.h"

#include <algorithm>
#include <map>
#include <set>

#include "catalog/write/levels.h"
#include "catalog/write/store_walk.h"

namespace modelstore {
namespace {

void Add(LevelBytes& sum, const LevelBytes& more) {
  sum.identical_file += more.identical_file;
  sum.identical_tensor += more.identical_tensor;
  sum.self += more.self;
  sum.delta += more.delta;
  sum.raw += more.raw;
  sum.content += more.content;
  sum.compact += more.compact;
}

constexpr uint32_t kNobody = UINT32_MAX;
constexpr uint32_t kMany = UINT32_MAX - 1;

void Hold(uint32_t& holder, uint32_t model) {
  if (holder == kNobody) holder = model;
  if (holder != model) holder = kMany;
}

// Who holds what, computed once for all models.
class UsageCounter {
 public:
  explicit UsageCounter(const StoreWalk& walk)
      : walk_(walk),
        tensor_holder_(walk.tensors().size(), kNobody),
        file_holder_(walk.files().size(), kNobody),
        tensor_counted_(walk.tensors().size()),
        file_counted_(walk.files().size()),
        usages_(walk.models().size()) {
    for (uint32_t m = 0; m < walk.models().size(); ++m) ids_[walk.models()[m].record.id] = m;
    for (uint32_t m = 0; m < walk.models().size(); ++m) {
      for (const uint32_t file : walk.models()[m].files) {
        if (file == StoreWalk::kMissing) continue;
        const bool was_seen = file_holder_[file] == m;
        Hold(file_holder_[file], m);
        if (was_seen) continue;
        for (const StoreWalk::FileExtent& extent : walk.files()[file].extents) {
          if (extent.tensor != StoreWalk::kMissing) Hold(tensor_holder_[extent.tensor], m);
        }
      }
    }
    std::vector<uint32_t> by_creation(walk.models().size());
    for (uint32_t m = 0; m < by_creation.size(); ++m) by_creation[m] = m;
    std::sort(by_creation.begin(), by_creation.end(),
              [&](uint32_t a, uint32_t b) { return walk.models()[a].record.id < walk.models()[b].record.id; });
    for (const uint32_t m : by_creation) Count(m);
    Classify();
  }

  std::vector<ModelUsage>& usages() { return usages_; }

 private:
  // Levels go to the first model, by creation, that holds a byte: call in that order.
  void Count(uint32_t m) {
    const StoreWalk::Model& model = walk_.models()[m];
    ModelUsage& usage = usages_[m];
    usage.name = model.record.name;
    usage.fidelity = model.record.fidelity == Fidelity::kExact ? "exact" : "compact";
    usage.logical_bytes = model.record.logical_bytes;
    usage.created_ns = model.record.created_ns;
    usage.files = model.record.files.size();
    usage.stored_bytes = model.cost;
    std::vector<uint32_t> files = model.files;
    for (const uint32_t file : files) {
      if (file != StoreWalk::kMissing) CountLevels(walk_.files()[file], file, usage.levels);
    }
    std::sort(files.begin(), files.end());
    files.erase(std::unique(files.begin(), files.end()), files.end());
    std::vector<uint32_t> tensors;
    for (const uint32_t file : files) {
      if (file == StoreWalk::kMissing) continue;
      (file_holder_[file] == m ? usage.stored_bytes : usage.shared_bytes) += walk_.files()[file].cost;
      for (const StoreWalk::FileExtent& extent : walk_.files()[file].extents) {
        if (extent.tensor != StoreWalk::kMissing) tensors.push_back(extent.tensor);
      }
    }
    std::sort(tensors.begin(), tensors.end());
    tensors.erase(std::unique(tensors.begin(), tensors.end()), tensors.end());
    for (const uint32_t tensor : tensors)
      (tensor_holder_[tensor] == m ? usage.stored_bytes : usage.shared_bytes) += walk_.tensors()[tensor].cost;
  }

  void CountLevels(const StoreWalk::File& file, uint32_t index, LevelBytes& levels) {
    if (file_counted_[index]) {
      levels.identical_file += file.bytes;
      return;
    }
    file_counted_[index] = true;
    for (const StoreWalk::FileExtent& extent : file.extents) {
      if (extent.is_literal || extent.tensor == StoreWalk::kMissing) {
        levels.content += extent.bytes;
      } else if (tensor_counted_[extent.tensor]) {
        levels.identical_tensor += extent.bytes;
      } else {
        tensor_counted_[extent.tensor] = true;
        LevelOf(levels, walk_.tensors()[extent.tensor].encoding, extent.is_named) += extent.bytes;
      }
    }
  }

  void Classify() {
    std::vector<char> has_finetunes(usages_.size());
    for (uint32_t m = 0; m < usages_.size(); ++m) {
      const auto base = ids_.find(walk_.models()[m].record.base);
      if (base == ids_.end()) continue;
      usages_[m].base = walk_.models()[base->second].record.name;
      has_finetunes[base->second] = true;
    }
    for (uint32_t m = 0; m < usages_.size(); ++m) {
      const std::vector<uint32_t>& files = walk_.models()[m].files;
      const bool has_tensors = std::any_of(files.begin(), files.end(), [&](uint32_t file) {
        return file != StoreWalk::kMissing && walk_.files()[file].kind == FileKind::kSafetensors;
      });
      usages_[m].kind = !usages_[m].base.empty() ? "finetune"
                        : has_finetunes[m]       ? "base"
                        : has_tensors            ? "model"
                                                 : "files";
    }
  }

  const StoreWalk& walk_;
  std::vector<uint32_t> tensor_holder_, file_holder_;
  std::vector<char> tensor_counted_, file_counted_;
  std::map<ModelId, uint32_t> ids_;
  std::vector<ModelUsage> usages_;
};

struct BaseName {
  std::string model, tensor;
};

// Names of the tensors that `wanted` points to: in `preferred` when that model holds them, else in any model.
Status NameTensors(const KvStore& store, const StoreWalk& walk, const std::string& preferred,
                   std::map<TensorId, BaseName>* wanted) {
  std::vector<const StoreWalk::Model*> order;
  for (const StoreWalk::Model& model : walk.models()) order.push_back(&model);
  std::stable_partition(order.begin(), order.end(),
                        [&](const StoreWalk::Model* model) { return model->record.name == preferred; });
  size_t unnamed = wanted->size();
  for (const StoreWalk::Model* model : order) {
    for (const ModelFile& file : model->record.files) {
      if (unnamed == 0) return OkStatus();
      ASSIGN_OR_RETURN(const StoredValue value, store.Get(Family::kFiles, FileKey(file.sha256)));
      ASSIGN_OR_RETURN(const FileRecord record, ParseFileRecord(value.bytes()));
      for (const Extent& extent : record.extents) {
        const auto it = wanted->find(extent.tensor);
        if (extent.name.empty() || it == wanted->end() || !it->second.model.empty()) continue;
        it->second = {model->record.name, extent.name};
        --unnamed;
      }
    }
  }
  return OkStatus();
}

Result<TensorRecord> GetTensor(const KvStore& store, const TensorId& id) {
  ASSIGN_OR_RETURN(const StoredValue value, store.Get(Family::kTensors, TensorKey(id)));
  return ParseTensorRecord(value.bytes());
}

Result<FileUsage> DescribeFile(const KvStore& store, const StoreWalk& walk, const ModelFile& file,
                               std::map<TensorId, BaseName>* bases,
                               std::vector<std::pair<size_t, TensorId>>* based_tensors) {
  ASSIGN_OR_RETURN(const StoredValue value, store.Get(Family::kFiles, FileKey(file.sha256)));
  ASSIGN_OR_RETURN(const FileRecord record, ParseFileRecord(value.bytes()));
  FileUsage usage;
  usage.path = file.path;
  usage.sha256 = ToHex(file.sha256);
  usage.kind = record.kind == FileKind::kSafetensors ? "safetensors" : "content";
  usage.logical_bytes = file.bytes;
  usage.stored_bytes = value.bytes().size() + file.sha256.size();
  std::set<uint32_t> counted;
  for (const Extent& extent : record.extents) {
    if (extent.kind == Extent::Kind::kLiteral) continue;
    const uint32_t index = walk.FindTensor(extent.tensor);
    const uint64_t cost = index == StoreWalk::kMissing ? 0 : walk.tensors()[index].cost;
    if (counted.insert(index).second) usage.stored_bytes += cost;
    if (extent.name.empty()) continue;
    ASSIGN_OR_RETURN(const TensorRecord tensor, GetTensor(store, extent.tensor));
    TensorUsage& detail = usage.tensors.emplace_back();
    detail.name = extent.name;
    detail.dtype = DTypeName(tensor.dtype);
    detail.encoding = EncodingName(EncodingOf(tensor));
    detail.shape = tensor.shape;
    detail.logical_bytes = extent.bytes;
    detail.stored_bytes = cost;
    const auto segment = std::find_if(tensor.view.begin(), tensor.view.end(),
                                      [](const ViewSegment& s) { return s.kind == ViewSegment::Kind::kIdentity; });
    if (segment == tensor.view.end()) continue;
    (*bases)[segment->base];
    based_tensors->emplace_back(usage.tensors.size() - 1, segment->base);
  }
  return usage;
}

}  // namespace

Result<StoreReport> MakeReport(Catalog& catalog) {
  ASSIGN_OR_RETURN(const StoreWalk walk, StoreWalk::Load(catalog.store()));
  StoreReport report;
  UsageCounter counter(walk);
  report.models = std::move(counter.usages());
  for (const ModelUsage& model : report.models) {
    report.logical_bytes += model.logical_bytes;
    Add(report.levels, model.levels);
  }
  const StoreWalk::Reachable live = walk.Mark();
  report.stored_bytes = walk.Cost(live);
  report.prunable_bytes = walk.TotalCost() - report.stored_bytes;
  for (const StoreWalk::Model& model : walk.models()) report.stored_bytes += model.cost;
  ASSIGN_OR_RETURN(report.disk_bytes, catalog.store().DiskBytes());
  if (report.logical_bytes > 0)
    report.saved_fraction = 1.0 - static_cast<double>(report.stored_bytes) / static_cast<double>(report.logical_bytes);
  return report;
}

Result<ModelDetail> DescribeModel(Catalog& catalog, const std::string& name) {
  ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
  KvStore& store = catalog.store();
  ASSIGN_OR_RETURN(const StoreWalk walk, StoreWalk::Load(store));
  UsageCounter counter(walk);
  ModelDetail detail;
  const uint32_t index = walk.FindModel(name);
  if (index == StoreWalk::kMissing) return NotFound("no model named '" + name + "'; see ls for the models that are");
  detail.usage = counter.usages()[index];
  std::map<TensorId, BaseName> bases;
  std::vector<std::vector<std::pair<size_t, TensorId>>> based_tensors;
  for (const ModelFile& file : model.files) {
    ASSIGN_OR_RETURN(FileUsage usage, DescribeFile(store, walk, file, &bases, &based_tensors.emplace_back()));
    detail.files.push_back(std::move(usage));
  }
  RETURN_IF_ERROR(NameTensors(store, walk, detail.usage.base, &bases));
  for (size_t f = 0; f < detail.files.size(); ++f) {
    for (const auto& [tensor, base] : based_tensors[f]) {
      detail.files[f].tensors[tensor].base_model = bases[base].model;
      detail.files[f].tensors[tensor].base_tensor = bases[base].tensor;
    }
  }
  return detail;
}

}  // namespace modelstore
