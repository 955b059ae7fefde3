// CompactCoder: a finetune's large tensors as factors, residual and scales (layer: catalog/write; private;
// docs/architecture.md, "A compact push").
//
//   coder.Examine(&items)           reads every delta once; what a budget can choose from
//   coder.PlanBytes | PlanDrift     what each tensor gets
//   coder.Encode(items, sink)       reads every delta again; token tensors go to the sink as they fill
//
// Not thread-safe; spreads its work over the lanes of the push, within the bytes that it is given.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/moments_file.h"
#include "catalog/write/parallel.h"
#include "catalog/write/push.h"
#include "catalog/write/tensor_data.h"
#include "codec/decode/compact_frame.h"

namespace modelstore {

// A tensor of the push that may be made compact.
struct CompactItem {
  const SourceFile* file = nullptr;
  const SourceExtent* source = nullptr;
  uint64_t rows = 0, columns = 0;
  TensorId base;  // all its elements, from the first on, are predicted by the base's
  bool has_moments = false, has_rows = false;
  bool transposed = false;   // stored as [inputs, outputs]: its columns are what the encoder sees as rows
  std::string moments_name;  // in the file of moments
  Hash128 moments;           // of H
  bool finite = true;        // set by Examine; others stay exact
  CompactAnalysis analysis;
  CompactChoice choice;     // set by a plan
  size_t pick = 0;          // which option of `analysis` the choice is
  std::vector<bool> tried;  // options of `analysis` that Encode has measured
  // Set by Encode:
  std::optional<CompactChoice> encoded;  // what the rest is of
  CompactSegment segment;
  double energy = 0, error = 0;
  double bytes = 0;  // entropy of its levels and scales

  uint64_t elems() const { return rows * columns; }
  uint64_t inputs() const { return transposed ? rows : columns; }
  bool is_encoded() const { return encoded == choice; }
};

// What a compact tensor consists of.
struct CompactParts {
  CompactFrame frame;
  std::vector<ViewSegment> factors, residual, scales;
};

class CompactCoder {
 public:
  // Stores a tensor of tokens or scales that the frame's views then name.
  enum class Part { kPairs, kQuads, kScales };
  using Sink = std::function<Result<TensorId>(ByteSpan content, Part part)>;

  CompactCoder(Catalog& catalog, const CompactOptions& options, Lanes& lanes, uint64_t memory_bytes, JobControl& job)
      : catalog_(catalog), options_(options), lanes_(lanes), memory_bytes_(memory_bytes), job_(job) {}

  // What the token tensors take on their way into the store, whatever the tensors' sizes.
  static constexpr uint64_t kPartBytes = 64 << 20;

  // All tensors get options.choice: there is nothing to plan.
  static bool HasFixedChoice(const CompactOptions& options) {
    return options.choice && !options.target_ratio && !options.max_drift;
  }
  // Whether there are moments of a tensor's inputs, and whether they are of one that is stored as [inputs, outputs]
  // (CompactItem::transposed). `moments` may be null.
  struct MomentsKind {
    bool any = false, transposed = false;
  };
  static MomentsKind MomentsOf(const CompactOptions& options, const MomentsFile* moments, const SourceExtent& tensor);
  // The bytes that a tensor of the push's takes at most while it is encoded.
  static uint64_t MemoryFor(const CompactOptions& options, uint64_t rows, uint64_t columns, bool has_moments,
                            bool transposed);

  // Errors: InvalidArgument (moments of another model, not finite), ResourceExhausted (names the tensor and its need).
  Status Examine(std::vector<CompactItem>* items);
  // Sets every item's choice. Errors: Unsupported when the budget cannot be met; says what can.
  // `again`: from the choices that are set on, after Encode.
  Status PlanBytes(std::vector<CompactItem>* items, double budget_bytes, bool again) const;
  Status PlanDrift(std::vector<CompactItem>* items, double max_drift, bool again) const;
  // `items` (finite ones, of one dtype) become the segments, in order. `previous`: what the same items became before,
  // or null; whose choice is the same is copied from there.
  Result<CompactParts> Encode(const std::vector<CompactItem*>& items, const CompactParts* previous, const Sink& sink);
  // What Encode gives when no tensor keeps anything.
  static Result<CompactParts> Nothing(const std::vector<CompactItem*>& items);
  static double BytesOf(const std::vector<CompactItem>& items);
  // Element-weighted mean of the tensors' drifts.
  static double DriftOf(const std::vector<CompactItem>& items);

 private:
  using Visit = std::function<Status(CompactItem&, const CompactInput&)>;
  Status FindMoments(std::vector<CompactItem>* items);
  Status CheckMemory(const CompactItem& item) const;
  // Calls visit for each item with its delta, several at once, those of equal moments after each other.
  Status ForEachDelta(const std::vector<CompactItem*>& items, const Visit& visit);
  Status VisitGroup(const std::vector<CompactItem*>& group, const Visit& visit);
  // finetune - base, and of BF16 tensors the base. False when one of them is not finite.
  Result<bool> LoadDelta(const CompactItem& item, std::vector<float>* out, std::vector<uint16_t>* base_out) const;
  Result<std::vector<CompactCandidate>> Candidates(const std::vector<CompactItem>& items) const;

  Catalog& catalog_;
  const CompactOptions& options_;
  Lanes& lanes_;
  const uint64_t memory_bytes_;
  JobControl& job_;
  std::unique_ptr<MomentsFile> moments_;
};

}  // namespace modelstore
