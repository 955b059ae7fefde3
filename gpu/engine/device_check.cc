#include "gpu/engine/device_check.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace modelstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 3;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

double Rate(double bytes, double seconds) { return seconds > 0 ? bytes / seconds : 0; }

}  // namespace

Result<DeviceVerdict> VerifyDevice(const PluginSession& session, const std::vector<CorpusBlock>& blocks) {
  DeviceVerdict verdict;
  for (size_t next = 0; next < blocks.size();) {
    BatchBuilder builder(session.limits(0));
    std::vector<std::pair<const CorpusBlock*, BatchBuilder::Block>> added;
    const size_t first = next;
    for (; next < blocks.size(); ++next) {
      const Result<std::optional<BatchBuilder::Block>> block = blocks[next].AddTo(builder);
      if (!block.ok()) {
        // Found while the batch was made, which is the CPU's part.
        ++verdict.blocks;
        if (blocks[next].is_good) verdict.wrong.push_back(blocks[next].name + ": " + block.status().ToString());
        continue;
      }
      if (!*block) break;
      added.emplace_back(&blocks[next], **block);
    }
    if (next == first) return Unavailable("a batch of the GPU has no room for one block");
    builder.Finish();
    RETURN_IF_ERROR(session.Run(0));
    for (const auto& [block, at] : added) {
      ++verdict.blocks;
      verdict.bytes += block->expected.size();
      const bool succeeded = builder.Succeeded(at, session.output(0));
      if (succeeded != block->is_good) {
        verdict.wrong.push_back(block->name + (succeeded ? ": taken for good" : ": taken for damaged"));
      } else if (succeeded) {
        const ByteSpan bytes = builder.BytesOf(at, session.output(0));
        const auto differs = std::mismatch(bytes.begin(), bytes.end(), block->expected.begin()).first - bytes.begin();
        if (static_cast<size_t>(differs) != bytes.size())
          verdict.wrong.push_back(block->name + ": block " + std::to_string(block->index) + " differs from byte " +
                                  std::to_string(differs) + " on");
      }
    }
  }
  return verdict;
}

Result<DeviceSpeed> MeasureDevice(const PluginSession& session, const std::vector<CorpusBlock>& blocks,
                                  WorkerPool& pool) {
  DeviceSpeed speed;
  std::vector<Bytes> out;
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point device_start = Clock::now();
    BatchBuilder builder(session.limits(0));
    std::vector<BatchBuilder::Block> added;
    for (const CorpusBlock& block : blocks) {
      ASSIGN_OR_RETURN(const std::optional<BatchBuilder::Block> at, block.AddTo(builder));
      if (!at) break;
      added.push_back(*at);
    }
    const DeviceProgram& program = builder.Finish();
    DeviceTimes times{};
    RETURN_IF_ERROR(session.Run(0, &times));
    if (out.empty()) {
      for (size_t i = 0; i < added.size(); ++i) out.emplace_back(blocks[i].expected.size());
    }
    double bytes = 0;
    for (size_t i = 0; i < added.size(); ++i) {
      const ByteSpan made = builder.BytesOf(added[i], session.output(0));
      std::copy(made.begin(), made.end(), out[i].begin());
      bytes += static_cast<double>(made.size());
    }
    speed.device = std::max(speed.device, Rate(bytes, Seconds(device_start)));
    speed.kernels = std::max(speed.kernels, Rate(bytes, times.kernels_ms * 1e-3));
    speed.upload = std::max(speed.upload, Rate(static_cast<double>(program.input_bytes), times.upload_ms * 1e-3));
    speed.download =
        std::max(speed.download, Rate(static_cast<double>(program.output_bytes), times.download_ms * 1e-3));

    const Clock::time_point cpu_start = Clock::now();
    RETURN_IF_ERROR(pool.ParallelFor(added.size(), [&](size_t i) { return DecodeOnCpu(blocks[i], out[i]); }));
    speed.cpu = std::max(speed.cpu, Rate(bytes, Seconds(cpu_start)));
  }
  return speed;
}

}  // namespace modelstore
