// OpenFile: a stored file that is ready for reading (layer: catalog/read).
//
// Thread-safe. The file's record never changes while the object lives, and prune leaves alone what the record refers to
// (FileTable::PinnedTensors). What reading learns is kept here too: the geometry of each extent's tensor, and how the
// file is being read.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "catalog/read/access_pattern.h"
#include "catalog/read/tensor_geometry.h"
#include "catalog/schema/records.h"
#include "codec/support/hash.h"
#include "codec/support/status.h"

namespace modelstore {

// The geometry of an extent's tensor, taken from whatever record the tensor was last read by. Any thread.
class ExtentGeometry {
 public:
  bool is_known() const { return block_bytes_.load(std::memory_order_acquire) != 0; }
  Geometry Get(const TensorId& tensor) const {
    return {tensor, tensor_bytes_.load(std::memory_order_relaxed), push_.load(std::memory_order_relaxed),
            block_bytes_.load(std::memory_order_relaxed)};
  }
  // A record that replaces another one differs in the push alone.
  void Set(const Geometry& geometry) {
    tensor_bytes_.store(geometry.tensor_bytes, std::memory_order_relaxed);
    push_.store(geometry.push, std::memory_order_relaxed);
    block_bytes_.store(geometry.block_bytes, std::memory_order_release);
  }

 private:
  std::atomic<uint64_t> tensor_bytes_{0};
  std::atomic<PushId> push_{0};
  std::atomic<uint32_t> block_bytes_{0};  // 0: not known yet
};

class OpenFile {
 public:
  // Errors: Corruption when the record's extents do not cover the file.
  static Result<std::shared_ptr<OpenFile>> Create(const Sha256Digest& sha256, FileRecord record);

  uint64_t bytes() const { return record_.bytes; }
  const FileRecord& record() const { return record_; }

  // For messages: "file <hash in hexadecimal>".
  static std::string NameOf(const Sha256Digest& sha256) { return "file " + ToHex(sha256); }
  std::string Name() const { return NameOf(sha256_); }

  // Calls visit(number of the extent, offset within the extent, bytes) for the extents of [begin, end), in order.
  template <typename VisitFn>
  Status ForExtents(uint64_t begin, uint64_t end, const VisitFn& visit) const {
    for (size_t e = begin < end ? ExtentAt(begin) : 0; begin < end; ++e) {
      const uint64_t skip = begin - begins_[e];
      const uint64_t n = std::min(end - begin, record_.extents[e].bytes - skip);
      if (n != 0) RETURN_IF_ERROR(visit(e, skip, n));
      begin += n;
    }
    return OkStatus();
  }

  // For the read path alone.
  ExtentGeometry& geometry(size_t extent) { return geometries_[extent]; }
  AccessPattern& pattern() { return pattern_; }

 private:
  OpenFile(const Sha256Digest& sha256, FileRecord record, std::vector<uint64_t> begins);
  // The extent that holds byte `offset` (< bytes()).
  size_t ExtentAt(uint64_t offset) const {
    return static_cast<size_t>(std::upper_bound(begins_.begin(), begins_.end(), offset) - begins_.begin()) - 1;
  }

  const Sha256Digest sha256_;
  const FileRecord record_;
  const std::vector<uint64_t> begins_;  // of each extent
  const std::unique_ptr<ExtentGeometry[]> geometries_;
  AccessPattern pattern_;
};
using FileRef = std::shared_ptr<OpenFile>;

}  // namespace modelstore
