#include <map>
#include <set>

#include "catalog/write/file_reader.h"
#include "catalog/write/maintain.h"
#include "catalog/write/store_usage.h"
#include "catalog/write/store_walk.h"
#include "codec/decode/block_decoder.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

std::string NameOf(const TensorId& id) { return "tensor " + ToHex(AsBytes(TensorKey(id))); }

// What ends the verification instead of being found by it: the store may be whole.
bool SaysNothingOfTheStore(const Status& status) {
  return status.code() == StatusCode::kCancelled || status.code() == StatusCode::kResourceExhausted;
}

// One verification. A file's blocks are decoded from the store's bytes, but the bases that predict them may come from
// the cache; so each tensor that no verified file lists (a base of what one lists, and in a whole store everything
// else) is decoded by itself. Then every stored block was read once.
class Verification {
 public:
  Verification(Catalog& catalog, JobControl& job) : catalog_(catalog), store_(catalog.store()), job_(job) {}

  // `names`: all models when empty, and with them the whole store.
  Result<VerifyReport> Run(const std::vector<std::string>& names) {
    const bool whole_store = names.empty();
    RETURN_IF_ERROR(ReadRecords(names));
    job_.Begin("verifying", total_bytes_);
    RETURN_IF_ERROR(ReadFiles());
    RETURN_IF_ERROR(ReadOthers());
    if (whole_store) {
      const Status status = store_.VerifyChecksums([this] { return job_.cancelled(); });
      RETURN_IF_ERROR(job_.Check());
      if (!status.ok()) Fail("", "", status);
      RETURN_IF_ERROR(CheckUsage());
    }
    return std::move(report_);
  }

 private:
  // A tensor that is read by itself.
  struct Other {
    std::set<Sha256Digest> files;  // that need it as a base; none: no verified file does
    Status status;
  };

  void Fail(const std::string& model, const std::string& file, const Status& status) {
    report_.failed.push_back({model, file, std::string(status.message())});
  }

  // What there is to verify, and whether the records agree. All of one moment: pushes publish meanwhile. What they
  // replace stays until prune, so that everything that is found here can be read afterwards.
  Status ReadRecords(const std::vector<std::string>& names) {
    ASSIGN_OR_RETURN(const auto snapshot, store_.Snapshot());
    for (const std::string& name : names) {
      ASSIGN_OR_RETURN(models_.emplace_back(), FindModel(*snapshot, name));
    }
    if (names.empty()) {
      ASSIGN_OR_RETURN(models_, ListModels(*snapshot));
    }
    for (const ModelRecord& model : models_) {
      for (const ModelFile& file : model.files) {
        report_.checked += 1;
        report_.checked_bytes += file.bytes;
        if (files_.emplace(file.sha256, OkStatus()).second) total_bytes_ += file.bytes;
      }
    }
    RETURN_IF_ERROR(FindBases(*snapshot));
    return names.empty() ? FindTheRest(*snapshot) : OkStatus();
  }

  // Failures to read the records are found again, and told, by whoever reads the file.
  Status FindBases(const KvReader& store) {
    std::set<std::pair<TensorId, Sha256Digest>> seen;
    for (const auto& [sha256, status] : files_) {
      RETURN_IF_ERROR(job_.Check());
      const Result<StoredValue> value = store.Get(Family::kFiles, FileKey(sha256));
      if (!value.ok()) continue;
      const Result<FileRecord> record = ParseFileRecord(value->bytes());
      if (!record.ok()) continue;
      for (const Extent& extent : record->extents) {
        if (extent.kind != Extent::Kind::kLiteral) seen.emplace(extent.tensor, sha256);
      }
      for (const auto& [id, bytes] : TensorsInFull(*record)) {
        const TensorRecord* tensor = Record(store, id);
        if (tensor == nullptr || tensor->bytes == bytes) listed_.insert(id);
      }
    }
    std::vector<std::pair<TensorId, Sha256Digest>> pending(seen.begin(), seen.end());
    while (!pending.empty()) {
      const auto [id, sha256] = pending.back();
      pending.pop_back();
      const TensorRecord* record = Record(store, id);
      if (record == nullptr) continue;
      if (!listed_.contains(id)) AddOther(id, record->bytes).files.insert(sha256);
      ForEachReference(*record, [&, file = sha256](const TensorId& needed) {
        if (seen.emplace(needed, file).second) pending.emplace_back(needed, file);
      });
    }
    return OkStatus();
  }

  // Null when it cannot be read. Only what the search for bases needs is kept of it.
  const TensorRecord* Record(const KvReader& store, const TensorId& id) {
    const auto [it, is_new] = records_.try_emplace(id);
    if (is_new) {
      const Result<StoredValue> value = store.Get(Family::kTensors, TensorKey(id));
      if (!value.ok()) return nullptr;
      Result<TensorRecord> record = ParseTensorRecord(value->bytes());
      if (!record.ok()) return nullptr;
      record->frame.clear();
      it->second = std::make_unique<TensorRecord>(*std::move(record));
    }
    return it->second.get();
  }

  Other& AddOther(const TensorId& id, uint64_t bytes) {
    const auto [it, is_new] = others_.try_emplace(id);
    if (is_new) total_bytes_ += bytes;
    return it->second;
  }

  // Tensors, edges, files and sketches that no model reaches, and whether the records agree with each other.
  Status FindTheRest(const KvReader& store) {
    std::set<std::pair<TensorId, TensorId>> edges;  // that the tensors' views want
    std::set<TensorId> tensors;
    RETURN_IF_ERROR(store.Scan(Family::kTensors, "", [&](std::string_view key, ByteSpan value) -> Status {
      if (job_.cancelled()) return job_.Check();
      const Result<TensorId> id = ParseTensorKey(key);
      const Result<TensorRecord> record = ParseTensorRecord(value);
      if (!id.ok()) {
        Fail("", "", id.status());
        return OkStatus();
      }
      tensors.insert(*id);
      if (!listed_.contains(*id)) AddOther(*id, record.ok() ? record->bytes : 0);
      if (!record.ok()) return OkStatus();
      if (record->encoding().may_be_base) ForEachBase(*record, [&](const TensorId& base) { edges.emplace(base, *id); });
      return OkStatus();
    }));
    RETURN_IF_ERROR(store.ScanKeys(Family::kEdges, "", [&](std::string_view key) -> Status {
      const Result<TensorId> dependent = ParseEdgeDependent(key);
      if (!dependent.ok()) {
        Fail("", "", dependent.status());
        return OkStatus();
      }
      ASSIGN_OR_RETURN(const TensorId base, ParseTensorKey(key.substr(0, key.size() / 2)));
      if (edges.erase({base, *dependent}) == 0)
        Fail("", "",
             Corruption("an edge says that " + NameOf(*dependent) + " is stored against " + NameOf(base) +
                        ", its record does not"));
      return OkStatus();
    }));
    for (const auto& [base, dependent] : edges)
      Fail("", "", Corruption(NameOf(dependent) + " is stored against " + NameOf(base) + ", no edge says so"));
    RETURN_IF_ERROR(store.Scan(Family::kSketches, "", [&](std::string_view key, ByteSpan value) {
      const Result<TensorId> id = ParseTensorKey(key);
      const Status status = id.ok() ? ParseSketchRecord(value).status() : id.status();
      if (!status.ok()) Fail("", "", status);
      if (id.ok() && !tensors.contains(*id)) Fail("", "", Corruption("a sketch is of no stored " + NameOf(*id)));
      return OkStatus();
    }));
    return store.Scan(Family::kFiles, "", [&](std::string_view key, ByteSpan value) {
      const Result<FileRecord> record = ParseFileRecord(value);
      if (!record.ok()) {
        // That of a model's file is told with the model.
        if (!IsListed(key)) Fail("", "", record.status().WithContext("file " + ToHex(AsBytes(key))));
        return OkStatus();
      }
      for (const Extent& extent : record->extents) {
        if (extent.kind == Extent::Kind::kLiteral || tensors.contains(extent.tensor) || IsListed(key)) continue;
        Fail("", "",
             Corruption("file " + ToHex(AsBytes(key)) + " needs " + NameOf(extent.tensor) + ", which is missing"));
      }
      return OkStatus();
    });
  }

  bool IsListed(std::string_view file_key) const {
    Sha256Digest sha256;
    if (file_key.size() != sha256.size()) return false;
    std::copy_n(AsBytes(file_key).begin(), sha256.size(), sha256.begin());
    return files_.contains(sha256);
  }

  Status ReadFiles() {
    std::vector<std::pair<const Sha256Digest, Status>*> files;
    for (auto& file : files_) files.push_back(&file);
    RETURN_IF_ERROR(catalog_.pool().ParallelFor(files.size(), [&](size_t i) -> Status {
      files[i]->second = ReadWholeFile(catalog_, files[i]->first, job_, [](ByteSpan) { return OkStatus(); });
      return SaysNothingOfTheStore(files[i]->second) ? files[i]->second : OkStatus();
    }));
    for (const ModelRecord& model : models_) {
      for (const ModelFile& file : model.files) {
        if (const Status& status = files_.at(file.sha256); !status.ok()) Fail(model.name, file.path, status);
      }
    }
    return OkStatus();
  }

  Status ReadOthers() {
    std::vector<std::pair<const TensorId, Other>*> others;
    for (auto& other : others_) others.push_back(&other);
    RETURN_IF_ERROR(catalog_.pool().ParallelFor(others.size(), [&](size_t i) -> Status {
      others[i]->second.status = ReadTensor(others[i]->first);
      return SaysNothingOfTheStore(others[i]->second.status) ? others[i]->second.status : OkStatus();
    }));
    for (const auto& [id, other] : others_) {
      if (other.status.ok()) continue;
      if (other.files.empty()) {
        Fail("", "", other.status.WithContext(NameOf(id) + ", which no model needs (prune removes it)"));
        continue;
      }
      for (const ModelRecord& model : models_) {
        for (const ModelFile& file : model.files) {
          if (other.files.contains(file.sha256))
            Fail(model.name, file.path, other.status.WithContext("what it needs, " + NameOf(id)));
        }
      }
    }
    return OkStatus();
  }

  Status ReadTensor(const TensorId& id) {
    ReadEngine& reader = catalog_.reader();
    ASSIGN_OR_RETURN(const TensorRef tensor, reader.OpenTensorById(id));
    Hasher128 hasher = StartTensorHash(tensor->record.dtype, tensor->record.shape);
    for (uint32_t i = 0; i < tensor->frame.BlockCount(); ++i) {
      RETURN_IF_ERROR(job_.Check());
      ASSIGN_OR_RETURN(const BlockRef block, reader.ReadBlock(tensor, i, /*keep=*/false));
      hasher.Update(block.bytes());
      job_.Advance(block.bytes().size());
    }
    if (hasher.Finish() != id.hash) return Corruption("it decodes to bytes of another hash than its own");
    return OkStatus();
  }

  // What is wrong with the figures that report counts with; empty also when there are none, or records cannot be read.
  Result<WriteBatch> FindUsageRepairs() {
    ASSIGN_OR_RETURN(const auto snapshot, store_.Snapshot());
    const Result<StoreWalk> walk = StoreWalk::Load(*snapshot);
    if (!walk.ok()) return WriteBatch();  // told above
    ASSIGN_OR_RETURN(const bool is_kept, UsageIsKept(*snapshot));
    return is_kept ? UsageRepairs(*snapshot, *walk) : WriteBatch();
  }

  // Figures that report would get wrong are no damage: they are put right, or told when that is not possible. Mostly
  // there is nothing to do, which is found without keeping anybody from publishing.
  Status CheckUsage() {
    ASSIGN_OR_RETURN(WriteBatch repairs, FindUsageRepairs());
    if (repairs.empty()) return OkStatus();
    MutexLock publish(catalog_.publish_mutex());
    ASSIGN_OR_RETURN(repairs, FindUsageRepairs());
    if (repairs.empty()) return OkStatus();
    const Status repaired = store_.Write(repairs, Durability::kSync);
    publish.Unlock();  // nobody waits for a client to take a warning
    if (!repaired.ok())
      job_.Warn("the figures of report are not what the records say; prune puts them right (" + repaired.ToString() +
                ")");
    return OkStatus();
  }

  Catalog& catalog_;
  KvStore& store_;
  JobControl& job_;
  VerifyReport report_;
  std::vector<ModelRecord> models_;
  std::map<Sha256Digest, Status> files_;  // each distinct one is read once, however many models hold it
  std::set<TensorId> listed_;             // tensors that those read
  std::map<TensorId, Other> others_;
  std::map<TensorId, std::unique_ptr<TensorRecord>> records_;
  uint64_t total_bytes_ = 0;
};

}  // namespace

Result<VerifyReport> Verify(Catalog& catalog, const std::vector<std::string>& names, JobControl& job) {
  ASSIGN_OR_RETURN(const CollectGate::Hold keep, catalog.collect_gate().Share(job));
  return Verification(catalog, job).Run(names);
}

}  // namespace modelstore
