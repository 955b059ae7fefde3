// FileCosts: the stored bytes of mounted files, worked out from records when first asked for (layer: fuse).
//
// A file costs the coded bytes of its tensors, each once, and its literal bytes; what a delta's base costs is not
// counted. A compact tensor costs its record and what it consists of. Answers are kept until they are forgotten:
// content never changes, but how it is stored does. Thread-safe; nothing is locked while records are read.
#pragma once

#include <cstdint>
#include <map>

#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"
#include "codec/support/hash.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"

namespace modelstore {

class FileCosts {
 public:
  // `store` outlives this object.
  explicit FileCosts(const KvStore& store) : store_(store) {}

  // Errors: NotFound (also when a tensor's record is missing), Corruption, Unsupported, Io.
  Result<uint64_t> StoredBytes(const Sha256Digest& sha256);
  void Forget(const Sha256Digest& sha256);

 private:
  Result<uint64_t> Compute(const Sha256Digest& sha256) const;
  // Calls visit(id, used, record, bytes of the record's value) for each of `tensors`.
  template <typename Used, typename VisitFn>
  Status ForRecords(const std::map<TensorId, Used>& tensors, const VisitFn& visit) const;

  const KvStore& store_;
  Mutex mutex_;
  std::map<Sha256Digest, uint64_t> known_ MS_GUARDED_BY(mutex_);
  uint64_t forgotten_ MS_GUARDED_BY(mutex_) = 0;  // how often something was
};

}  // namespace modelstore
