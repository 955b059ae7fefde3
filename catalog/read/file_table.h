// FileTable: the files that are open, by the hash of their content, and the tensors behind their extents (layer:
// catalog/read; private).
//
// Thread-safe. Whoever opens a file that is open already shares one OpenFile, so that PinnedTensors knows the file as
// long as anybody has it open. The table itself keeps no file open.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "catalog/read/open_file.h"
#include "catalog/read/open_tensor.h"
#include "catalog/read/tensor_table.h"
#include "catalog/store/kv_store.h"
#include "codec/support/mutex.h"

namespace modelstore {

class FileTable {
 public:
  // Both outlive the object.
  FileTable(const KvReader& store, TensorTable& tensors) : store_(store), tensors_(tensors) {}

  // Errors: NotFound, Corruption, Unsupported, Io.
  Result<FileRef> Open(const Sha256Digest& sha256) MS_EXCLUDES(opens_mutex_, files_mutex_);
  // From now on the file is opened by the record that it has now; who has it open keeps the old record, whose tensors
  // stay pinned.
  void Forget(const Sha256Digest& sha256) MS_EXCLUDES(opens_mutex_, files_mutex_);

  // The geometry of an extent's tensor; the first call for an extent reads the tensor, as TensorOf. The extent is no
  // literal. Errors: Corruption (the extent does not fit its tensor), Unsupported, Io; messages name the file.
  Result<Geometry> GeometryOfExtent(OpenFile& file, size_t extent);
  // The extent's tensor as its record is now, from which the extent's geometry is taken. Errors: as GeometryOfExtent.
  Result<TensorRef> TensorOf(OpenFile& file, size_t extent);

  // The tensors that files which are open now need, with all that those tensors refer to, in order.
  std::vector<TensorId> PinnedTensors() const MS_EXCLUDES(files_mutex_);
  // While the mutex is held exclusively no file is opened that is not open already.
  SharedMutex& opens_mutex() MS_RETURN_CAPABILITY(opens_mutex_) { return opens_mutex_; }

 private:
  Result<FileRef> Load(const Sha256Digest& sha256) const;

  const KvReader& store_;
  TensorTable& tensors_;
  SharedMutex opens_mutex_ MS_ACQUIRED_BEFORE(files_mutex_);  // shared while a file is opened
  mutable Mutex files_mutex_;
  std::map<Sha256Digest, std::weak_ptr<OpenFile>> files_ MS_GUARDED_BY(files_mutex_);
  std::vector<std::weak_ptr<OpenFile>> replaced_ MS_GUARDED_BY(files_mutex_);  // by Forget
  size_t sweep_at_ MS_GUARDED_BY(files_mutex_) = 64;  // entries of files_, at which those of closed files go
};

}  // namespace modelstore
