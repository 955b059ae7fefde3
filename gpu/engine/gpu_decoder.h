// GpuDecoder: decodes what is read ahead on a GPU, where that is faster (layer: gpu/engine).
//
// Thread-safe. A batch takes a slot, which has memory and a queue of its own on the device: while one decodes, another
// is made or copied out. With no slot free the CPU decodes: so both work. Whatever fails is decoded on the CPU. A
// device that is slower than the CPU for a while, since somebody else uses it, is left alone for a minute.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "catalog/read/batch_decoder.h"
#include "catalog/read/worker_pool.h"
#include "codec/support/mutex.h"
#include "codec/support/thread.h"
#include "gpu/engine/device_check.h"
#include "gpu/engine/plugin.h"

namespace modelstore {

struct GpuOptions {
  enum class Mode : uint8_t { kAuto, kOff, kDevice };
  Mode mode = Mode::kAuto;
  int device = 0;                          // of kDevice, which is used whether it is faster or not
  std::string plugin;                      // "": where it is installed
  uint64_t memory_bytes = 256ull << 20;    // of the device, at most
  uint64_t pinned_bytes = 256ull << 20;    // of the host, at most
  std::vector<std::string> probe_command;  // ends in ProbeMain (gpu_probe.h)
};

// What memory of the host the slots take, which the daemon's budget must have room for.
uint64_t PinnedBytes(const GpuOptions& options);

struct GpuState {
  enum class Kind : uint8_t { kOff, kStarting, kNone, kSlower, kUsed, kFailed };
  Kind kind = Kind::kOff;
  int device = -1;
  std::string name;                                              // of the device
  std::string reason;                                            // of kNone and kFailed
  double cpu_bytes_per_second = 0, device_bytes_per_second = 0;  // measured at the start; 0: not
  double recent_bytes_per_second = 0;                            // of the last batches
  uint64_t pauses = 0;                                           // because it was slower than the CPU for a while
  uint64_t batch_bytes = 0;
  uint64_t batches = 0, decoded_bytes = 0, failed_blocks = 0, failed_batches = 0;
};
const char* GpuKindName(GpuState::Kind kind);

class GpuDecoder : public BatchDecoder {
 public:
  // Starts in the background: until it is ready, and when there is no usable device, batch_bytes() is 0. `pool`, with
  // whose threads the CPU is measured, outlives the object.
  static std::shared_ptr<GpuDecoder> Start(const GpuOptions& options, WorkerPool& pool);
  ~GpuDecoder() override;

  std::unique_ptr<Batch> Begin(uint64_t bytes) override;
  bool Takes(Encoding encoding) const override;
  uint64_t batch_bytes() const override;
  GpuState state() const;
  // Until it is known whether there is a device (tests).
  void WaitUntilStarted();

 private:
  class SlotBatch;
  GpuDecoder(const GpuOptions& options, WorkerPool& pool);
  void OpenAndTell();  // the thread of the start
  Status Open();
  Status Choose(const PluginSession& session);
  void Free(uint32_t slot);
  void Failed(const Status& status);

  const GpuOptions options_;
  WorkerPool& pool_;
  int stop_fd_ = -1;  // readable once the start is to be given up
  Thread starting_;

  mutable Mutex mutex_;
  CondVar changed_;
  GpuState state_ MS_GUARDED_BY(mutex_);
  std::shared_ptr<PluginSession> session_ MS_GUARDED_BY(mutex_);
  std::vector<uint32_t> free_slots_ MS_GUARDED_BY(mutex_);
  std::map<Encoding, bool> takes_ MS_GUARDED_BY(mutex_);
  uint32_t slow_batches_ MS_GUARDED_BY(mutex_) = 0;  // in a row
  std::chrono::steady_clock::time_point paused_until_ MS_GUARDED_BY(mutex_);
};

}  // namespace modelstore
