#include "catalog/write/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
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
  sum.projected += more.projected;
}

std::string_view DriftKindName(DriftKind kind) {
  switch (kind) {
    case DriftKind::kNone:
      return "";
    case DriftKind::kPlain:
      return "plain";
    case DriftKind::kMoments:
      return "moments";
  }
  return "unknown";
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
        tensor_counter_(usage.tensor_costs().size(), kNobody),
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
    usage.drift = model.record.drift;
    usage.drift_kind = DriftKindName(model.record.drift_kind);
    (model.record.derived ? usage.recipe : usage.method) = model.record.method;
    usage.allow_compact = model.record.allow_compact;
    usage.logical_bytes = model.record.logical_bytes;
    usage.created_ns = model.record.created_ns;
    usage.files = model.record.files.size();
    usage.stored_bytes = model.cost_bytes;
    std::vector<uint32_t> files = model.files;
    for (const uint32_t file : files) {
      if (file != StoreUsage::kMissing) CountLevels(usage_.files()[file], file, m, usage.levels);
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

  void CountLevels(const StoreUsage::File& file, uint32_t index, uint32_t m, LevelBytes& levels) {
    if (std::exchange(file_counted_[index], true)) {
      levels.identical_file += file.bytes;
      return;
    }
    levels.content += file.literal_bytes;
    levels.identical_tensor += file.repeated_bytes;
    for (const StoreUsage::HeldTensor& held : usage_.TensorsOf(file)) {
      uint32_t& counter = tensor_counter_[held.tensor];
      // Files of one model may each hold some of a tensor.
      const bool is_first = counter == kNobody || (held.in_parts && counter == m);
      if (counter == kNobody) counter = m;
      if (!is_first) {
        levels.identical_tensor += held.bytes;
      } else {
        LevelOf(levels, held.encoding, held.is_named) += held.bytes;
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
      usages_[m].kind = usage_.models()[m].record.derived ? "derived"
                        : !usages_[m].base.empty()        ? "finetune"
                        : has_finetunes[m]                ? "base"
                        : has_tensors                     ? "model"
                                                          : "files";
    }
  }

  const StoreUsage& usage_;
  std::vector<uint32_t> tensor_holder_, file_holder_;
  std::vector<uint32_t> tensor_counter_;  // of each tensor: the model that counted its bytes first
  std::vector<char> file_counted_;
  std::vector<uint32_t> seen_by_;  // of each tensor: the model that counted its cost last
  std::unordered_map<ModelId, uint32_t> ids_;
  std::vector<ModelUsage> usages_;
};

struct BaseName {
  std::string model, tensor;
};

// Names of the tensors that `wanted` points to, from files that `may_read` (null: all) allows: in `preferred` when that
// model holds them, else in any model. A tensor that no such file lists keeps no name.
Status NameTensors(const KvReader& store, const StoreUsage& usage, const std::string& preferred,
                   const MayReadFunction& may_read, std::map<TensorId, BaseName>* wanted) {
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
      if (may_read && !may_read(model->record, model->record.files[f])) continue;
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

// A tensor that a file's extents name, with what it costs.
struct StoredTensor {
  TensorRecord record;
  uint64_t cost = 0;
  std::shared_ptr<const CompactFrame> frame;  // of a compact one only
  std::map<InputRole, uint64_t> own_costs;    // of its inputs that are stored for its sake

  uint64_t TotalCost() const {
    uint64_t total = cost;
    for (const auto& [role, own] : own_costs) total += own;
    return total;
  }
  uint64_t CostOf(InputRole role) const {
    const auto found = own_costs.find(role);
    return found == own_costs.end() ? 0 : found->second;
  }
};

// Adds what the tensors of `view` cost to `cost`, of those that `counted` does not hold yet.
Status CountParts(const KvReader& store, const std::vector<ViewSegment>& view, std::set<TensorId>* counted,
                  uint64_t* cost) {
  for (const ViewSegment& segment : view) {
    if (segment.kind != ViewSegment::Kind::kIdentity || !counted->insert(segment.base).second) continue;
    ASSIGN_OR_RETURN(const StoredValue stored, store.Get(Family::kTensors, TensorKey(segment.base)));
    ASSIGN_OR_RETURN(const TensorRecord part, ParseTensorRecord(stored.bytes()));
    *cost += TensorCost(part, stored.bytes().size());
  }
  return OkStatus();
}

Result<StoredTensor> LoadTensor(const KvReader& store, const TensorId& id, std::set<TensorId>* counted) {
  StoredTensor tensor;
  ASSIGN_OR_RETURN(const StoredValue stored, store.Get(Family::kTensors, TensorKey(id)));
  ASSIGN_OR_RETURN(tensor.record, ParseTensorRecord(stored.bytes()));
  tensor.cost = TensorCost(tensor.record, stored.bytes().size());
  counted->insert(id);
  for (const TensorInput& input : tensor.record.inputs) {
    if (!IsOwnInput(input.role)) continue;
    RETURN_IF_ERROR(CountParts(store, input.view, counted, &tensor.own_costs[input.role]));
  }
  if (tensor.record.encoding().encoding == Encoding::kCompact) {
    ASSIGN_OR_RETURN(const Frame frame, ParseFrame(tensor.record.frame));
    tensor.frame = frame.compact;
  }
  return tensor;
}

// `share` of `whole` of `cost`.
double Share(uint64_t cost, uint64_t share, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(cost) * static_cast<double>(share) / static_cast<double>(whole);
}

// The segment that holds element `elem`; nullptr past the end.
const CompactSegment* SegmentAt(const CompactFrame& frame, uint64_t elem) {
  auto after = std::upper_bound(frame.segments.begin(), frame.segments.end(), elem,
                                [](uint64_t e, const CompactSegment& segment) { return e < segment.first_elem; });
  if (after == frame.segments.begin()) return nullptr;
  const CompactSegment& segment = *--after;
  return elem - segment.first_elem < segment.elems() ? &segment : nullptr;
}

void DescribeSegment(const StoredTensor& tensor, const CompactSegment& segment, TensorUsage* detail) {
  const CompactFrame& frame = *tensor.frame;
  detail->shape = {segment.rows, segment.columns};
  if (segment.rows == 1) detail->shape.erase(detail->shape.begin());
  detail->rank = segment.rank;
  detail->has_residual = segment.has_residual;
  detail->drift = DriftFromCode(segment.drift_code);
  const CompactSegment* next = &segment == &frame.segments.back() ? nullptr : &segment + 1;
  const auto share = [&](uint64_t cost, uint64_t begin, uint64_t next_begin, uint64_t whole) {
    return Share(cost, (next == nullptr ? whole : next_begin) - begin, whole);
  };
  const CompactSegment& end = next == nullptr ? segment : *next;
  detail->stored_bytes = static_cast<uint64_t>(
      std::llround(Share(tensor.cost, 1, frame.segments.size()) +
                   share(tensor.CostOf(InputRole::kFactors), segment.first_factor_token, end.first_factor_token,
                         frame.factor_tokens) +
                   share(tensor.CostOf(InputRole::kResidual), segment.first_residual_token, end.first_residual_token,
                         frame.residual_tokens) +
                   share(tensor.CostOf(InputRole::kScales), segment.first_scale, end.first_scale, frame.scales)));
}

// The base of element `elem`, or null.
const ViewSegment* BaseOf(const TensorRecord& tensor, uint64_t elem) {
  if (const View& weight = tensor.ViewOf(InputRole::kWeight); !weight.empty()) return &weight.front();
  for (const ViewSegment& segment : tensor.ViewOf(InputRole::kBase)) {
    if (elem < segment.elems) return segment.kind == ViewSegment::Kind::kIdentity ? &segment : nullptr;
    elem -= segment.elems;
  }
  return nullptr;
}

Result<FileUsage> DescribeFile(const KvReader& store, const ModelFile& file, std::map<TensorId, BaseName>* bases,
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
  std::set<std::pair<TensorId, uint64_t>> counted_parts;
  std::map<TensorId, StoredTensor> in_parts;  // looked up once, however many parts there are
  for (const Extent& extent : record.extents) {
    if (extent.kind == Extent::Kind::kLiteral) continue;
    const bool is_part = extent.kind == Extent::Kind::kTensorPart;
    const bool is_new = !counted.contains(extent.tensor);
    StoredTensor whole;
    const StoredTensor* tensor = &whole;
    if (const auto known = in_parts.find(extent.tensor); known != in_parts.end()) {
      tensor = &known->second;
    } else {
      ASSIGN_OR_RETURN(whole, LoadTensor(store, extent.tensor, &counted));
      if (is_part) tensor = &in_parts.emplace(extent.tensor, std::move(whole)).first->second;
    }
    // Of a tensor that several files have parts of, each counts its own.
    if (is_new && !is_part) usage.stored_bytes += tensor->TotalCost();
    if (extent.name.empty()) continue;
    const uint32_t width = DTypeBytes(tensor->record.dtype);
    const uint64_t first_elem = extent.offset_bytes / width;
    TensorUsage& detail = usage.tensors.emplace_back();
    detail.name = extent.name;
    detail.dtype = DTypeName(tensor->record.dtype);
    detail.encoding = tensor->record.encoding().name;
    detail.logical_bytes = extent.bytes;
    const CompactSegment* segment = tensor->frame == nullptr ? nullptr : SegmentAt(*tensor->frame, first_elem);
    if (segment != nullptr) {
      DescribeSegment(*tensor, *segment, &detail);
    } else if (is_part) {
      detail.shape = {extent.bytes / width};
      detail.stored_bytes =
          static_cast<uint64_t>(std::llround(Share(tensor->TotalCost(), extent.bytes, tensor->record.bytes)));
    } else {
      detail.shape = tensor->record.shape;
      detail.stored_bytes = tensor->cost;
    }
    if (is_part && counted_parts.emplace(extent.tensor, extent.offset_bytes).second)
      usage.stored_bytes += detail.stored_bytes;
    const ViewSegment* base = BaseOf(tensor->record, first_elem);
    if (base == nullptr) continue;
    (*bases)[base->base];
    based_tensors->emplace_back(usage.tensors.size() - 1, base->base);
  }
  return usage;
}

}  // namespace

Result<StoreReport> MakeReport(Catalog& catalog) {
  ASSIGN_OR_RETURN(const auto snapshot, catalog.store().Snapshot());
  ASSIGN_OR_RETURN(const StoreUsage usage, StoreUsage::Load(*snapshot));
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

Result<ModelDetail> DescribeModel(Catalog& catalog, const std::string& name, const MayReadFunction& may_read) {
  ASSIGN_OR_RETURN(const auto snapshot, catalog.store().Snapshot());
  const KvReader& store = *snapshot;
  ASSIGN_OR_RETURN(const ModelRecord model, FindModel(store, name));
  ASSIGN_OR_RETURN(const StoreUsage usage, StoreUsage::Load(store));
  UsageCounter counter(usage);
  ModelDetail detail;
  const uint32_t index = usage.FindModel(name);
  if (index == StoreUsage::kMissing) return Internal("the model '" + name + "' is listed under another name");
  detail.usage = counter.usages()[index];
  std::map<TensorId, BaseName> bases;
  std::vector<std::vector<std::pair<size_t, TensorId>>> based_tensors;
  for (const ModelFile& file : model.files) {
    if (may_read && !may_read(model, file)) {
      detail.files_left_out += 1;
      continue;
    }
    ASSIGN_OR_RETURN(FileUsage described, DescribeFile(store, file, &bases, &based_tensors.emplace_back()));
    detail.files.push_back(std::move(described));
  }
  RETURN_IF_ERROR(NameTensors(store, usage, detail.usage.base, may_read, &bases));
  for (size_t f = 0; f < detail.files.size(); ++f) {
    for (const auto& [tensor, base] : based_tensors[f]) {
      detail.files[f].tensors[tensor].base_model = bases[base].model;
      detail.files[f].tensors[tensor].base_tensor = bases[base].tensor;
    }
  }
  return detail;
}

}  // namespace modelstore
