// PushJob: one push from source to published model (layer: catalog/write; private; traced in docs/architecture.md).
//
// Run() does everything; it is called once. What it wrote is removed again when it fails.
//
// A compact push (push_compact.cc) picks tensors that have a base before anything is coded, codes the others as always,
// then those, and hashes the files that hold them as they will be read.
//
// Each extent is read, hashed and coded on its own, many at a time, in file order. Between reading and coding it takes
// its turn in its file's SHA-256, over the same bytes: so the extents make the file of that SHA-256, and what the hash
// of a tensor proves holds for the file.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/base_choice.h"
#include "catalog/write/compact_coder.h"
#include "catalog/write/file_layout.h"
#include "catalog/write/parallel.h"
#include "catalog/write/push.h"
#include "catalog/write/store_usage.h"
#include "catalog/write/tensor_writer.h"
#include "codec/support/mutex.h"

namespace modelstore {

// The key behind a push's blocks before `end`.
inline std::string BlocksEnd(PushId push, uint64_t end) {
  return end > UINT32_MAX ? BlockKeyPrefix(push + 1) : BlockKey(push, static_cast<uint32_t>(end));
}

class PushJob {
 public:
  PushJob(Catalog& catalog, const SourceTree& source, const PushOptions& options, JobControl& job)
      : catalog_(catalog), source_(source), options_(options), job_(job) {}
  ~PushJob() { Withdraw(); }
  PushJob(const PushJob&) = delete;
  PushJob& operator=(const PushJob&) = delete;
  Result<PushReport> Run();
  // Run failed because the model cannot be stored within its drift.
  bool exceeds_drift() const { return exceeds_drift_; }

 private:
  // A tensor that this push wrote.
  struct NewTensor {
    TensorId id;
    TensorRecord record;
    bool needed = false;   // a file that is published refers to it
    bool derived = false;  // not an extent of a source: compact, a part of that, a bundle
    TensorRef introduced;  // to the reader, who finds it before it is published
  };
  // Tensors that many threads make. They stay where they are, and only the thread that leads the job goes over them,
  // while no other is at work: that needs no lock.
  class NewTensors {
   public:
    NewTensor* Add(NewTensor tensor) {
      const MutexLock lock(mutex_);
      return &tensors_.emplace_back(std::move(tensor));
    }
    auto begin() MS_NO_THREAD_SAFETY_ANALYSIS { return tensors_.begin(); }
    auto end() MS_NO_THREAD_SAFETY_ANALYSIS { return tensors_.end(); }
    auto begin() const MS_NO_THREAD_SAFETY_ANALYSIS { return tensors_.begin(); }
    auto end() const MS_NO_THREAD_SAFETY_ANALYSIS { return tensors_.end(); }

   private:
    Mutex mutex_;
    std::deque<NewTensor> tensors_ MS_GUARDED_BY(mutex_);
  };
  struct PlannedFile;
  // One extent of a file and what became of it. Exactly one of `stored`, `made` and `repeats` is set in the end
  // (none for literals and for files that were already stored).
  struct PlannedExtent {
    SourceExtent source;
    PlannedFile* file = nullptr;
    uint32_t first_block = 0;
    size_t position = 0;  // among the push's extents of this shape
    size_t index = 0;     // in its file
    Hash128 hash;
    uint16_t ordinal = 0;  // of its tensor, when that is new
    std::optional<SketchRecord> sketch;
    std::optional<TensorId> stored;
    NewTensor* made = nullptr;
    const PlannedExtent* repeats = nullptr;
    // It is, or becomes, a part from `part_offset` on of a tensor that holds several: of a compact push, or derived.
    bool is_part = false;
    uint64_t part_offset = 0;
    std::optional<SourceContent::Projection> projection;
    bool is_placed = false;  // its source says which stored tensor it is (SourceContent::PlaceOf): nothing to code

    bool needs_coding() const { return !source.is_literal() && !is_part && !is_placed; }
  };
  struct PlannedFile {
    const SourceFile* source = nullptr;
    uint32_t mode = 0;
    FileKind kind = FileKind::kContent;
    std::deque<PlannedExtent> extents;
    bool has_parts = false;  // it has parts of tensors, or placed extents, and is hashed as it will be read
    Sha256 sha256_so_far;    // of the extents before `turn`; unused with parts
    size_t turn = 0;
    Sha256Digest sha256{};
    bool known = false;      // a file of this SHA-256 is stored already
    bool repeats = false;    // a file of this SHA-256 comes earlier in this push
    bool is_record = false;  // its source is that file, by its record: there is nothing to read or to hash
    // The stored one is damaged, or has as plain content what has tensors: this push's record replaces its record.
    bool mends = false;
  };

  // push_job.cc: reading and coding.
  Status Plan();
  // Whether `source` can be stored by its record.
  Result<bool> HasRecord(const SourceFile& source) const;
  // Of a file by its record: the bases of its tensors count as if they were compared.
  Status CountStored(const PlannedFile& file);
  static void Place(const SourceContent& content, PlannedExtent& extent);
  Status CodeAll();
  Status Code(PlannedExtent& extent);
  Status CodeInTurn(PlannedExtent& extent);
  // Waits for the extents before this one, then adds its bytes to the file's SHA-256 and sets extent.hash.
  Status HashInTurn(const TensorData& data, PlannedExtent& extent);
  static void SkipLiterals(PlannedFile& file);
  Status CodeDeferred(PlannedExtent& extent);
  Status StoredOfHash(const Hash128& hash, std::vector<TensorId>* ids);
  Result<uint16_t> AllotOrdinal(const Hash128& hash, uint32_t first);
  Result<bool> FindIdentical(const TensorData& data, PlannedExtent& extent);
  Result<bool> EqualsStored(const TensorData& data, const TensorId& id);
  Result<bool> EqualsTensor(const TensorData& data, const TensorRef& tensor);
  Result<bool> EqualsExtent(const TensorData& data, const PlannedExtent& other);
  Status StoreNew(const TensorData& data, PlannedExtent& extent, const std::vector<BaseCandidate>& candidates);
  // Stores what projected extents refer to besides stored tensors.
  Status StoreAxes();
  Result<TensorRecord> Project(const PlannedExtent& extent);
  void CountBases(const TensorRecord& record);
  // Errors: Io (a source changed).
  Status CheckSources();
  Status CheckContent(const SourceReader& reader, PlannedFile& file);
  Status ExplainNoSpace(const Status& status) const;
  static std::string Megabytes(uint64_t bytes);  // for messages

  // push_space.cc
  Status CheckSpace();
  Result<bool> HasRoomFor(uint64_t bytes) const;
  Result<uint64_t> EstimateStoredBytes(bool only_new);

  // push_compact.cc
  // The memory that encoding the largest tensor takes. Errors: ResourceExhausted when no push may have as much.
  Result<uint64_t> CompactNeed();
  uint64_t ReserveBytes() const;
  // Which extents are made compact, or bundled, and against what.
  Status SelectCompact();
  Status FindBases(std::vector<PlannedExtent*>* large, std::vector<PlannedExtent*>* small);
  Status EncodeCompact();
  // A tensor for each dtype of compact_, their extents pointing into them, by another id than they will have. What an
  // earlier call made is superseded. `nothing`: they keep nothing; for measuring what the rest takes.
  Status MakeCompact(bool nothing);
  // Gives them the id of their content, or lets their extents point to a tensor of the same content that is stored.
  Status FinishCompact();
  Result<bool> SameContent(const TensorRef& a, const TensorRef& b);
  Status MakeBundles(const std::vector<PlannedExtent*>& small);
  Status MakeBundle(const std::vector<PlannedExtent*>& extents);
  // Stores what is no extent of a source, unless it is stored already; makes it readable before it is published.
  Result<TensorId> StoreDerived(ByteSpan content, const SourceExtent& extent, const BaseChoice& choice);
  Result<NewTensor*> AddDerived(const TensorId& id, TensorRecord record);
  Status Introduce(NewTensor* tensor);
  Status HashFilesWithParts();
  // What publishing would add now.
  Result<uint64_t> MeasureAdded();
  void Withdraw();
  std::string CompactMethod() const;

  // push_materialise.cc
  // A delta's base that is computed (projected) would be computed again by every read of the delta: such bases get
  // blocks, under the ids that they have. What a base was computed from stays until prune.
  Status MaterialiseBases();
  Status Materialise(const TensorRef& tensor, uint32_t first_block);
  Status AddMaterialised(WriteBatch* batch);
  // Of the deltas that are published.
  std::set<TensorId> NeededBases() const;

  // push_publish.cc: verifying and publishing.
  // The model that publishing now would replace, if any. Errors: AlreadyExists, what may_replace answers.
  Result<std::optional<ModelRecord>> FindReplaced() const;
  Status AllocatePush();
  // Files that are stored already, in another layout than this push compared, are read; damaged ones are replaced.
  Status VerifyKnown();
  Result<bool> IsAsCompared(const PlannedFile& file);
  Status Verify();
  Status Publish(const ModelRecord* base, PushReport* report);
  // Which files are published for the first time, or better than they are stored, and which new tensors they need.
  Status MarkNeeded();
  Status FindStored(PlannedFile& file);
  // The source that a derived model is made of is still the one that was read.
  Status CheckDerivation() const MS_REQUIRES(catalog_.publish_mutex());
  // Another push may have published one of this push's tensors meanwhile: that one stays.
  Status YieldToRivals() MS_REQUIRES(catalog_.publish_mutex());
  Status YieldDerived() MS_REQUIRES(catalog_.publish_mutex());
  // Records that publishing adds but for the model's; the bytes of their blocks.
  Result<uint64_t> AddRecords(WriteBatch* batch);
  Status AddTensors(WriteBatch* batch);
  void DropBlocks(const TensorRecord& record, WriteBatch* batch) const;
  Status TooManyTensors() const;
  ModelRecord MakeModel() const;  // without id and base
  // Adds usage records and totals, or, when the store is too damaged for that, makes the totals invalid and says so.
  Status CountUsage(const CatalogMeta& meta, WriteBatch* batch) MS_REQUIRES(catalog_.publish_mutex());
  // What DropSketches needs to know of all models, as of the catalog record that UpdateIsPrepared compares with.
  Status PrepareUpdate();
  bool UpdateIsPrepared(const CatalogMeta& now) const;
  Status DropSketches(const ModelRecord& replaced, WriteBatch* batch) MS_REQUIRES(catalog_.publish_mutex());
  // For what a push can do without: damage of other records is remembered for a warning; other failures are returned.
  Status GoOnDespite(const Status& status);
  bool LeadsBack(ModelId base, ModelId model) const MS_REQUIRES(catalog_.publish_mutex());
  void CountLevels(PushReport* report) const;
  static const PlannedExtent& OriginOf(const PlannedExtent& extent);
  static const TensorId& IdOf(const PlannedExtent& extent);
  static FileRecord RecordOf(const PlannedFile& file);
  void RollBack();
  // Gives the space of blocks back that this push wrote and deleted again. Errors: Cancelled, Io, NoSpace.
  // Nothing is done about less than `at_least`.
  Status CollectOwnBlocks(uint64_t at_least);

  // How the push's share of memory is spent: how many threads work at once, and what each may hold of a tensor, and of
  // its prediction.
  void SplitMemory();

  Catalog& catalog_;
  const SourceTree& source_;
  const PushOptions& options_;
  JobControl& job_;
  std::deque<PlannedFile> files_;
  std::unique_ptr<BaseChooser> bases_;
  std::unique_ptr<TensorWriter> writer_;
  PushId push_ = 0;
  uint64_t kept_bytes_ = 0;  // of the blocks that it published
  MemoryShares::Share memory_;
  std::unique_ptr<Lanes> lanes_;
  uint64_t hold_bytes_ = 0;
  BufferPool holds_;  // tensors
  BufferPool scratches_;

  uint64_t next_block_ = 0;  // of tensors that are no extents
  std::map<const SourceContent::Axes*, TensorId> axes_;
  std::unique_ptr<CompactCoder> coder_;
  std::vector<CompactItem> items_;
  std::vector<PlannedExtent*> item_extents_;  // of each item
  struct CompactGroup {
    std::vector<size_t> members;        // items of one dtype
    std::optional<CompactParts> parts;  // as they were encoded last
    NewTensor* made = nullptr;
  };
  std::map<DType, CompactGroup> compact_;
  std::vector<PlannedExtent*> small_;  // in files with parts: bundled
  bool exceeds_drift_ = false;

  struct UsageOfUpdate {
    ModelId next_model = 0;
    uint64_t model_digest = 0;
    Result<StoreUsage> usage;  // a failure: records are damaged
  };
  std::optional<UsageOfUpdate> update_;

  Status damage_;  // the first that GoOnDespite was given

  NewTensors new_tensors_;
  NewTensors materialised_;

  Mutex turn_mutex_;  // also of PlannedFile::turn
  CondVar turn_changed_;
  Status failure_ MS_GUARDED_BY(turn_mutex_);  // of the first extent that failed: nobody waits for its turn any more

  Mutex mutex_;
  // The extents of one hash that do not repeat another one (or are not yet known to).
  std::map<Hash128, std::vector<const PlannedExtent*>> claims_ MS_GUARDED_BY(mutex_);
  std::set<TensorId> allotted_ MS_GUARDED_BY(mutex_);  // ids of what this push stores
  std::vector<PlannedExtent*> deferred_ MS_GUARDED_BY(mutex_);
};

}  // namespace modelstore
