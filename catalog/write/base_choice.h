// BaseChooser: which stored tensors a new tensor could be a delta against, and which of them is cheapest
// (layer: catalog/write; private; docs/architecture.md, "Choosing a base").
//
// Large tensors find their base by content: sketches (sampled values) of all stored tensors of their shape. What has no
// sketch, or no near one, looks into one model, the one that gives the large tensors most base bytes, by name and shape
// first and by position among its tensors of that shape second. Names are only hints: every candidate is compared by
// its estimated coded size. Compact models and their tensors are nobody's base. ByContent, ByModel, Choose, Vote and
// CountBase may be called from several threads; Load and Elect not beside them.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/push.h"
#include "catalog/write/store_usage.h"
#include "catalog/write/tensor_data.h"
#include "codec/encode/exact_encoder.h"
#include "codec/support/mutex.h"

namespace modelstore {

// A tensor of a candidate's model, and how the new tensor would see it.
struct BaseCandidate {
  TensorRef base;
  std::vector<ViewSegment> view;
};

struct BaseChoice {
  EncodePlan plan;
  std::vector<ViewSegment> view;  // empty unless the plan is a delta
};

// Records that a delta adds besides its frame and blocks: its edge and its view.
inline constexpr uint64_t kDeltaRecordBytes = 80;

// Sampled values of a floating-point tensor of at least kSketchMinElems elements; nothing for others. Errors: Io.
Result<std::optional<SketchRecord>> MakeSketch(const TensorData& data);

// Bit i speaks of a sketch's i-th value.
struct SketchSigns {
  uint64_t negative = 0, large = 0;
};

class BaseChooser {
 public:
  // Reads the sketches of stored tensors that have one of `shapes`. Errors: NotFound (--base names no model),
  // InvalidArgument (it names a compact one).
  static Result<std::unique_ptr<BaseChooser>> Load(Catalog& catalog, const PushOptions& options,
                                                   const std::vector<std::vector<uint64_t>>& shapes);

  // Stored tensors whose sketch is near, nearest first, at most kMaxCandidates.
  Result<std::vector<BaseCandidate>> ByContent(const SourceExtent& extent, const SketchRecord& sketch);
  // The counterpart of the push's `position`th tensor of its shape (and name) in the elected or given model.
  Result<std::vector<BaseCandidate>> ByModel(const SourceExtent& extent, size_t position);
  // The cheapest way to code `data`: by itself or against one of the candidates. Decodes only the candidates' blocks.
  Result<BaseChoice> Choose(const TensorData& data, const std::vector<BaseCandidate>& candidates);

  // A tensor of `bytes` bytes was found equal to, or coded against, stored tensor `id`.
  void Vote(const TensorId& id, uint64_t bytes);
  // What the push publishes needs `bytes` bytes of `id` as a base: of tensors coded now, and of stored deltas that it
  // takes as they are.
  void CountBase(const TensorId& id, uint64_t bytes);
  // Settles which model ByModel looks into: the one that holds most of what was voted for, and of several, or when
  // there are only small tensors, the one most of whose tensors have the name and size of one of `tensors`. None when
  // large tensors were compared with everything stored and nothing was near: names then promise nothing.
  Status Elect(const std::vector<const SourceExtent*>& tensors);
  // The model that gives most base bytes, of equals the one with least besides; nullptr when nothing is a delta.
  // Errors: Corruption, Io.
  Result<const ModelRecord*> BaseModel();

  bool may_use_bases() const { return mode_ != PushOptions::Base::kNone && !models_.empty(); }

 private:
  // All sketches of one shape, side by side: a push compares each of its tensors with all of them.
  struct Sketches {
    std::vector<TensorId> ids;
    std::vector<uint16_t> ordered;  // kSketchValues each, mapped so that integer distance is distance of values
    std::vector<SketchSigns> signs;
  };
  struct NamedTensor {
    TensorId id;
    std::string name;
  };
  using ShapeKey = std::string;  // as in a sketch record

  BaseChooser(Catalog& catalog, PushOptions::Base mode) : catalog_(catalog), mode_(mode) {}
  static ShapeKey KeyOf(const std::vector<uint64_t>& shape);
  Status LoadSketches(const std::vector<std::vector<uint64_t>>& shapes);
  // Nothing of that model's own may be a base.
  Status LeaveOut(const std::string& name);
  Status IndexModel(const ModelRecord& model);
  // The models that hold most bytes of `weights`; several when these are in all of them, as in a variant and its
  // source.
  Result<std::vector<const ModelRecord*>> HoldersOf(const std::map<TensorId, uint64_t>& weights);
  // That of `models` with most names and sizes of `tensors`, of equals the one with fewest others; null: none has any.
  Result<const ModelRecord*> NamesakeOf(const std::vector<const SourceExtent*>& tensors,
                                        const std::vector<const ModelRecord*>& models) const;
  // Adds `id` (or its own base, when it is a delta itself) unless it is there already or cannot predict the extent.
  Status AddCandidate(const SourceExtent& extent, const TensorId& id, std::vector<BaseCandidate>* candidates);
  Status ReadSample(const BaseCandidate& candidate, const SourceExtent& extent, Buffer* out);
  Result<FileRecord> FileOf(const ModelFile& file) const;

  Catalog& catalog_;
  PushOptions::Base mode_;
  std::vector<ModelRecord> models_;
  std::string left_out_name_;
  std::set<TensorId> left_out_;
  std::unordered_map<ShapeKey, Sketches> sketches_;
  std::unique_ptr<StoreUsage> usage_;  // when it was first needed
  const ModelRecord* elected_ = nullptr;
  std::unordered_map<ShapeKey, std::vector<NamedTensor>> by_shape_;  // the elected model's tensors, in file order
  std::unordered_map<std::string, TensorId> by_name_;
  Mutex votes_mutex_;
  std::map<TensorId, uint64_t> votes_ MS_GUARDED_BY(votes_mutex_), base_bytes_ MS_GUARDED_BY(votes_mutex_);
};

}  // namespace modelstore
