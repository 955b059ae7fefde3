#include "gpu/engine/gpu_decoder.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "codec/support/guarded.h"
#include "codec/support/log.h"
#include "gpu/engine/gpu_probe.h"

namespace modelstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kSlots = 2;
constexpr uint64_t kMaxBatchBytes = 16 << 20, kMinBatchBytes = 1 << 20;
// Beyond the elements: tables, coded bytes, tokens; statuses; factors as floats.
constexpr uint64_t kMoreInput = 4 << 20, kMoreOutput = 1 << 20, kMoreScratch = 8 << 20;
// A device must be that much faster than the CPU to be worth it.
constexpr double kWorthwhile = 1.1;
constexpr uint32_t kMaxSlowBatches = 16;
constexpr auto kPause = std::chrono::seconds(60);
// How much the latest batch counts in the recent rate.
constexpr double kRecent = 0.2;

// For batches of so much output: predictions that are uploaded as they are, coded bytes; bases that stay on the device.
DeviceSlots SlotsFor(uint64_t batch_bytes) {
  return {kSlots, 2 * batch_bytes + kMoreInput, batch_bytes + batch_bytes / 32 + kMoreOutput,
          batch_bytes + kMoreScratch};
}

uint64_t DeviceBytes(const DeviceSlots& slots) {
  return slots.count * (slots.input_bytes + slots.output_bytes + slots.scratch_bytes) + kDeviceConstantBytes;
}

uint64_t HostBytes(const DeviceSlots& slots) { return slots.count * (slots.input_bytes + slots.output_bytes); }

// The largest batch that there may be memory for; 0: none.
uint64_t LargestBatch(const GpuOptions& options) {
  const auto fits = [&](uint64_t bytes) {
    const DeviceSlots slots = SlotsFor(bytes);
    return DeviceBytes(slots) <= options.memory_bytes && HostBytes(slots) <= options.pinned_bytes;
  };
  uint64_t bytes = kMaxBatchBytes;
  while (bytes >= kMinBatchBytes && !fits(bytes)) bytes /= 2;
  return bytes < kMinBatchBytes ? 0 : bytes;
}

}  // namespace

uint64_t PinnedBytes(const GpuOptions& options) {
  if (options.mode == GpuOptions::Mode::kOff) return 0;
  const uint64_t batch_bytes = LargestBatch(options);
  return batch_bytes == 0 ? 0 : HostBytes(SlotsFor(batch_bytes));
}

const char* GpuKindName(GpuState::Kind kind) {
  switch (kind) {
    case GpuState::Kind::kOff:
      return "off";
    case GpuState::Kind::kStarting:
      return "starting";
    case GpuState::Kind::kNone:
      return "none";
    case GpuState::Kind::kSlower:
      return "slower than the CPU";
    case GpuState::Kind::kUsed:
      return "used";
    case GpuState::Kind::kFailed:
      return "failed";
  }
  return "";
}

// A slot in use.
class GpuDecoder::SlotBatch : public BatchDecoder::Batch {
 public:
  SlotBatch(GpuDecoder& decoder, std::shared_ptr<PluginSession> session, uint32_t slot)
      : decoder_(decoder), session_(std::move(session)), slot_(slot), builder_(session_->limits(slot)) {}
  ~SlotBatch() override {
    session_.reset();
    decoder_.Free(slot_);
  }

  BatchBuilder& builder() override { return builder_; }
  Status Run() override {
    builder_.Finish();
    const Status status = session_->Run(slot_);
    if (!status.ok()) decoder_.Failed(status);
    return status;
  }
  ByteSpan output() const override { return session_->output(slot_); }
  void Report(uint64_t decoded_bytes, uint64_t failed_blocks) override {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const MutexLock lock(decoder_.mutex_);
    GpuState& state = decoder_.state_;
    ++state.batches;
    state.decoded_bytes += decoded_bytes;
    state.failed_blocks += failed_blocks;
    if (seconds <= 0 || decoded_bytes == 0) return;
    const double rate = static_cast<double>(decoded_bytes) / seconds;
    double& recent = state.recent_bytes_per_second;
    recent = recent == 0 ? rate : recent + kRecent * (rate - recent);
    if (decoder_.options_.mode == GpuOptions::Mode::kDevice) return;
    // Two slots work side by side: each may be half as fast.
    const bool is_slow = kSlots * rate < state.cpu_bytes_per_second;
    decoder_.slow_batches_ = is_slow ? decoder_.slow_batches_ + 1 : 0;
    if (decoder_.slow_batches_ < kMaxSlowBatches) return;
    decoder_.slow_batches_ = 0;
    decoder_.paused_until_ = Clock::now() + kPause;
    ++state.pauses;
  }
  void Distrust(const std::string& why) override { decoder_.Failed(Unavailable(why)); }

 private:
  GpuDecoder& decoder_;
  std::shared_ptr<PluginSession> session_;
  const uint32_t slot_;
  const Clock::time_point start_ = Clock::now();
  BatchBuilder builder_;
};

std::shared_ptr<GpuDecoder> GpuDecoder::Start(const GpuOptions& options, WorkerPool& pool) {
  std::shared_ptr<GpuDecoder> decoder(new GpuDecoder(options, pool));
  if (options.mode == GpuOptions::Mode::kOff) return decoder;
  {
    const MutexLock lock(decoder->mutex_);
    decoder->state_.kind = GpuState::Kind::kStarting;
  }
  Result<Thread> starting = Thread::Start([raw = decoder.get()] { raw->OpenAndTell(); });
  if (starting.ok()) {
    decoder->starting_ = *std::move(starting);
  } else {
    const MutexLock lock(decoder->mutex_);
    decoder->state_.kind = GpuState::Kind::kNone;
    decoder->state_.reason = std::string(starting.status().message());
  }
  return decoder;
}

void GpuDecoder::OpenAndTell() {
  const Status status = Guarded([this] { return Open(); });
  const MutexLock lock(mutex_);
  if (!status.ok()) {
    state_.kind = GpuState::Kind::kNone;
    state_.reason = std::string(status.message());
  }
  // Nobody who has no GPU wants to read about that.
  const bool is_nothing = status.code() == StatusCode::kNotFound || state_.reason.starts_with("no GPU");
  const bool is_news = !is_nothing || options_.mode == GpuOptions::Mode::kDevice || !options_.plugin.empty();
  Log(is_news && !status.ok() ? LogLevel::kWarning
      : is_news               ? LogLevel::kInfo
                              : LogLevel::kDebug,
      "gpu",
      {{"state", GpuKindName(state_.kind)},
       {"device", state_.name},
       {"reason", state_.reason},
       {"cpu_bytes_per_second", std::to_string(static_cast<uint64_t>(state_.cpu_bytes_per_second))},
       {"device_bytes_per_second", std::to_string(static_cast<uint64_t>(state_.device_bytes_per_second))}});
  changed_.NotifyAll();
}

GpuDecoder::GpuDecoder(const GpuOptions& options, WorkerPool& pool)
    : options_(options), pool_(pool), stop_fd_(eventfd(0, EFD_CLOEXEC)) {}

GpuDecoder::~GpuDecoder() {
  if (stop_fd_ >= 0) eventfd_write(stop_fd_, 1);
  starting_.Join();
  if (stop_fd_ >= 0) close(stop_fd_);
}

Status GpuDecoder::Open() {
  const std::string path = options_.plugin.empty() ? Plugin::DefaultPath() : options_.plugin;
  if (path.empty()) return NotFound("the GPU plug-in is not installed");
  const int device = options_.mode == GpuOptions::Mode::kDevice ? options_.device : 0;
  const uint64_t largest = LargestBatch(options_);
  if (largest == 0) {
    const DeviceSlots least = SlotsFor(kMinBatchBytes);
    const auto mebibytes = [](uint64_t bytes) { return std::to_string((bytes >> 20) + 1) + " MiB"; };
    return InvalidArgument("a GPU needs at least " + mebibytes(DeviceBytes(least)) +
                           " of its memory (gpu.memory_bytes), and " + mebibytes(HostBytes(least)) +
                           " of the machine's, which may be an eighth of memory_budget_bytes");
  }
  RETURN_IF_ERROR(ProbeInChild(options_.probe_command, path, device, kProbeLimit, stop_fd_));
  ASSIGN_OR_RETURN(const std::shared_ptr<const Plugin> plugin, Plugin::Load(path));
  ASSIGN_OR_RETURN(const std::vector<DeviceInfo> devices, plugin->Devices());
  if (static_cast<size_t>(device) >= devices.size()) return Unavailable("the GPU is gone");
  {
    const MutexLock lock(mutex_);
    state_.device = device;
    state_.name = devices[static_cast<size_t>(device)].name;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<PluginSession> session, PluginSession::Open(plugin, device, SlotsFor(largest)));
  RETURN_IF_ERROR(Choose(*session));
  const MutexLock lock(mutex_);
  if (state_.batch_bytes == 0) {
    state_.kind = GpuState::Kind::kSlower;  // and the session ends
    return OkStatus();
  }
  session_ = std::move(session);
  for (uint32_t slot = 0; slot < kSlots; ++slot) free_slots_.push_back(slot);
  state_.kind = GpuState::Kind::kUsed;
  return OkStatus();
}

// The smallest batch that is about as fast as any: what is decoded ahead and not read after all is then the least.
// Deltas are what finetunes mostly are; their predictions are uploaded here, which is the slower of both cases.
Status GpuDecoder::Choose(const PluginSession& session) {
  const uint64_t largest = LargestBatch(options_);
  GpuState best;
  std::vector<std::pair<uint64_t, double>> rates;
  for (uint64_t bytes = kMinBatchBytes; bytes <= largest; bytes *= 2) {
    ASSIGN_OR_RETURN(const DeviceSpeed speed, MeasureDevice(session, OrdinaryBlocks("delta", bytes), pool_));
    if (speed.device > best.device_bytes_per_second) {
      best.device_bytes_per_second = speed.device;
      best.cpu_bytes_per_second = speed.cpu;
    }
    if (speed.device > kWorthwhile * speed.cpu || options_.mode == GpuOptions::Mode::kDevice)
      rates.emplace_back(bytes, speed.device);
  }
  const auto fast_enough =
      std::ranges::find_if(rates, [&](const auto& rate) { return rate.second >= 0.9 * best.device_bytes_per_second; });
  std::map<Encoding, bool> takes = {{Encoding::kDelta, true}, {Encoding::kSelf, false}, {Encoding::kCompact, false}};
  const std::pair<Encoding, const char*> others[] = {{Encoding::kSelf, "self"}, {Encoding::kCompact, "compact"}};
  for (const auto& [encoding, codec] : others) {
    if (fast_enough == rates.end()) break;
    ASSIGN_OR_RETURN(const DeviceSpeed speed, MeasureDevice(session, OrdinaryBlocks(codec, fast_enough->first), pool_));
    takes[encoding] = speed.device > kWorthwhile * speed.cpu || options_.mode == GpuOptions::Mode::kDevice;
  }
  const MutexLock lock(mutex_);
  takes_ = std::move(takes);
  state_.cpu_bytes_per_second = best.cpu_bytes_per_second;
  state_.device_bytes_per_second = best.device_bytes_per_second;
  if (fast_enough != rates.end()) state_.batch_bytes = fast_enough->first;
  return OkStatus();
}

std::unique_ptr<BatchDecoder::Batch> GpuDecoder::Begin(uint64_t bytes) {
  const MutexLock lock(mutex_);
  if (session_ == nullptr || free_slots_.empty() || bytes < state_.batch_bytes) return nullptr;
  if (Clock::now() < paused_until_) return nullptr;
  auto batch = std::make_unique<SlotBatch>(*this, session_, free_slots_.back());
  free_slots_.pop_back();
  return batch;
}

bool GpuDecoder::Takes(Encoding encoding) const {
  const MutexLock lock(mutex_);
  const auto takes = takes_.find(encoding);
  return takes != takes_.end() && takes->second;
}

uint64_t GpuDecoder::batch_bytes() const {
  const MutexLock lock(mutex_);
  return session_ == nullptr ? 0 : state_.batch_bytes;
}

void GpuDecoder::Free(uint32_t slot) {
  const MutexLock lock(mutex_);
  free_slots_.push_back(slot);
}

void GpuDecoder::Failed(const Status& status) {
  std::shared_ptr<PluginSession> ending;  // closed outside the lock, by the last batch that uses it
  {
    const MutexLock lock(mutex_);
    ++state_.failed_batches;
    ending = std::exchange(session_, nullptr);
    if (ending == nullptr) return;
    state_.kind = GpuState::Kind::kFailed;
    state_.reason = std::string(status.message());
  }
  Log(LogLevel::kError, "the GPU failed; the CPU decodes from now on", {{"error", std::string(status.message())}});
}

GpuState GpuDecoder::state() const {
  const MutexLock lock(mutex_);
  return state_;
}

void GpuDecoder::WaitUntilStarted() {
  const MutexLock lock(mutex_);
  while (state_.kind == GpuState::Kind::kStarting) changed_.Wait(mutex_);
}

}  // namespace modelstore
