#include "catalog/write/report.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <unordered_map>
#include <utility>

#include "catalog/write/levels.h"
#include "catalog/write/store_usage.h"

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
  explicit UsageCounter(const StoreUsage& usage)
      : usage_(usage),
        tensor_holder_(usage.tensor_costs().size(), kNobody),
        file_holder_(usage.files().size(), kNobody),
        tensor_counted_(usage.tensor_costs().size()),
        file_counted_(usage.files().size()),
        seen_by_(usage.tensor_costs().size(), kNobody),
        usages_(usage.models().size()) {
    for (uint32_t m = 0; m < usage_.models().size(); ++m) ids_[usage_.models()[m].record.id] = m;
    for (uint32_t m = 0; m < usage_.models().size(); ++m) {
      for (const uint32_t file : usage_.models()[m].files) {
        if (file == StoreUsage::kMissing) continue;
        const bool was_seen = file_holder_[file] == m;
        Hold(file_holder_[file], m);
        if (was_seen) continue;
        for (const StoreUsage::HeldTensor& held : usage_.TensorsOf(usage_.files()[file]))
          Hold(tensor_holder_[held.tensor], m);
      }
    }
    std::vector<uint32_t> by_creation(usage_.models().size());
    std::iota(by_creation.begin(), by_creation.end(), 0u);
    std::sort(by_creation.begin(), by_creation.end(),
              [&](uint32_t a, uint32_t b) { return usage_.models()[a].record.id < usage_.models()[b].record.id; });
    for (const uint32_t m : by_creation) Count(m);
    Classify();
  }

  std::vector<ModelUsage>& usages() { return usages_; }

 private:
  // Levels go to the first model, by creation, that holds a byte: call in that order.
  void Count(uint32_t m) {
    const StoreUsage::Model& model = usage_.models()[m];
    ModelUsage& usage = usages_[m];
    usage.name = model.record.name;
    usage.fidelity = model.record.fidelity == Fidelity::kExact ? "exact" : "compact";
    usage.logical_bytes = model.record.logical_bytes;
    usage.created_ns = model.record.created_ns;
    usage.files = model.record.files.size();
    usage.stored_bytes = model.cost_bytes;
    std::vector<uint32_t> files = model.files;
    for (const uint32_t file : files) {
      if (file != StoreUsage::kMissing) CountLevels(usage_.files()[file], file, usage.levels);
    }
    std::sort(files.begin(), files.end());
    files.erase(std::unique(files.begin(), files.end()), files.end());
    for (const uint32_t index : files) {
      if (index == StoreUsage::kMissing) continue;
      const StoreUsage::File& file = usage_.files()[index];
      (file_holder_[index] == m ? usage.stored_bytes : usage.shared_bytes) += file.cost_bytes;
      for (const StoreUsage::HeldTensor& held : usage_.TensorsOf(file)) {
        if (std::exchange(seen_by_[held.tensor], m) == m) continue;
        (tensor_holder_[held.tensor] == m ? usage.stored_bytes : usage.shared_bytes) +=
            usage_.tensor_costs()[held.tensor];
      }
    }
  }

  void CountLevels(const StoreUsage::File& file, uint32_t index, LevelBytes& levels) {
    if (std::exchange(file_counted_[index], true)) {
      levels.identical_file += file.bytes;
      return;
    }
    levels.content += file.literal_bytes;
    levels.identical_tensor += file.repeated_bytes;
    for (const StoreUsage::HeldTensor& held : usage_.TensorsOf(file)) {
      if (std::exchange(tensor_counted_[held.tensor], true)) {
        levels.identical_tensor += held.bytes;
      } else {
        LevelOf(levels, static_cast<Encoding>(held.encoding), held.is_named) += held.bytes;
      }
    }
  }

  void Classify() {
    std::vector<char> has_finetunes(usages_.size());
    for (uint32_t m = 0; m < usages_.size(); ++m) {
      const auto base = ids_.find(usage_.models()[m].record.base);
      if (base == ids_.end()) continue;
      usages_[m].base = usage_.models()[base->second].record.name;
      has_finetunes[base->second] = true;
    }
    for (uint32_t m = 0; m < usages_.size(); ++m) {
      const std::vector<uint32_t>& files = usage_.models()[m].files;
      const bool has_tensors = std::any_of(files.begin(), files.end(), [&](uint32_t file) {
        return file != StoreUsage::kMissing && usage_.files()[file].kind == FileKind::kSafetensors;
      });
      usages_[m].kind = !usages_[m].base.empty() ? "finetune"
                        : has_finetunes[m]       ? "base"
                        : has_tensors            ? "model"
                                                 : "files";
    }
  }

  const StoreUsage& usage_;
  std::vector<uint32_t> tensor_holder_, file_holder_;
  std::vector<char> tensor_counted_, file_counted_;
  std::vector<uint32_t> seen_by_;  // of each tensor: the model that counted its cost last
  std::unordered_map<ModelId, uint32_t> ids_;
  std::vector<ModelUsage> usages_;
};

struct BaseName {
  std::string model, tensor;
};

// Names of the tensors that `wanted` points to: in `preferred` when that model holds them, else in any model. A tensor
// that no model lists any more keeps no name.
Status NameTensors(const KvStore& store, const StoreUsage& usage, const std::string& preferred,
                   std::map<TensorId, BaseName>* wanted) {
  std::vector<char> is_wanted(usage.tensor_costs().size());
  for (const auto& [id, name] : *wanted) {
    if (const uint32_t index = usage.FindTensor(id); index != StoreUsage::kMissing) is_wanted[index] = true;
  }
  std::vector<const StoreUsage::Model*> order;
  for (const StoreUsage::Model& model : usage.models()) order.push_back(&model);
  std::stable_partition(order.begin(), order.end(),
                        [&](const StoreUsage::Model* model) { return model->record.name == preferred; });
  for (const StoreUsage::Model* model : order) {
    for (size_t f = 0; f < model->files.size(); ++f) {
      if (model->files[f] == StoreUsage::kMissing) continue;
      const auto tensors = usage.TensorsOf(usage.files()[model->files[f]]);
      if (std::ranges::none_of(tensors, [&](const auto& held) { return is_wanted[held.tensor] != 0; })) continue;
      ASSIGN_OR_RETURN(const StoredValue value, store.Get(Family::kFiles, FileKey(model->record.files[f].sha256)));
      ASSIGN_OR_RETURN(const FileRecord record, ParseFileRecord(value.bytes()));
      for (const Extent& extent : record.extents) {
        const auto it = wanted->find(extent.tensor);
        if (extent.name.empty() || it == wanted->end() || !it->second.model.empty()) continue;
        it->second = {model->record.name, extent.name};
        if (const uint32_t index = usage.FindTensor(extent.tensor); index != StoreUsage::kMissing)
          is_wanted[index] = false;
      }
    }
  }
  return OkStatus();
}

Result<FileUsage> DescribeFile(const KvStore& store, const ModelFile& file, std::map<TensorId, BaseName>* bases,
                               std::vector<std::pair<size_t, TensorId>>* based_tensors) {
  ASSIGN_OR_RETURN(const StoredValue value, store.Get(Family::kFiles, FileKey(file.sha256)));
  ASSIGN_OR_RETURN(const FileRecord record, ParseFileRecord(value.bytes()));
  FileUsage usage;
  usage.path = file.path;
  usage.sha256 = ToHex(file.sha256);
  usage.kind = record.kind == FileKind::kSafetensors ? "safetensors" : "content";
  usage.logical_bytes = file.bytes;
  usage.stored_bytes = FileCost(value.bytes().size());
  std::set<TensorId> counted;
  for (const Extent& extent : record.extents) {
    if (extent.kind == Extent::Kind::kLiteral) continue;
    ASSIGN_OR_RETURN(const StoredValue stored, store.Get(Family::kTensors, TensorKey(extent.tensor)));
    ASSIGN_OR_RETURN(const TensorRecord tensor, ParseTensorRecord(stored.bytes()));
    const uint64_t cost = TensorCost(tensor, stored.bytes().size());
    if (counted.insert(extent.tensor).second) usage.stored_bytes += cost;
    if (extent.name.empty()) continue;
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
  ASSIGN_OR_RETURN(const StoreUsage usage, StoreUsage::Load(catalog));
  StoreReport report;
  UsageCounter counter(usage);
  report.models = std::move(counter.usages());
  for (const ModelUsage& model : report.models) {
    report.logical_bytes += model.logical_bytes;
    Add(report.levels, model.levels);
  }
  report.stored_bytes = usage.needed_bytes();
  for (const StoreUsage::Model& model : usage.models()) report.stored_bytes += model.cost_bytes;
  // Less only in a store that lost records.
  report.prunable_bytes = usage.total_bytes() - std::min(usage.total_bytes(), usage.needed_bytes());
  ASSIGN_OR_RETURN(report.disk_bytes, catalog.store().DiskBytes());
  if (report.logical_bytes > 0)
    report.saved_fraction = 1.0 - static_cast<double>(report.stored_bytes) / static_cast<double>(report.logical_bytes);
  return report;
}

Result<ModelDetail> DescribeModel(Catalog& catalog, const std::string& name) {
  ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
  KvStore& store = catalog.store();
  ASSIGN_OR_RETURN(const StoreUsage usage, StoreUsage::Load(catalog));
  UsageCounter counter(usage);
  ModelDetail detail;
  const uint32_t index = usage.FindModel(name);
  if (index == StoreUsage::kMissing) return NotFound("no model named '" + name + "'; see ls for the models that are");
  detail.usage = counter.usages()[index];
  std::map<TensorId, BaseName> bases;
  std::vector<std::vector<std::pair<size_t, TensorId>>> based_tensors;
  for (const ModelFile& file : model.files) {
    ASSIGN_OR_RETURN(FileUsage described, DescribeFile(store, file, &bases, &based_tensors.emplace_back()));
    detail.files.push_back(std::move(described));
  }
  RETURN_IF_ERROR(NameTensors(store, usage, detail.usage.base, &bases));
  for (size_t f = 0; f < detail.files.size(); ++f) {
    for (const auto& [tensor, base] : based_tensors[f]) {
      detail.files[f].tensors[tensor].base_model = bases[base].model;
      detail.files[f].tensors[tensor].base_tensor = bases[base].tensor;
    }
  }
  return detail;
}

}  // namespace modelstore
