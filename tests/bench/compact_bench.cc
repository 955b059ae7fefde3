// Compact bench: BASE FINETUNE MOMENTS|- CHOICE...: encodes every large tensor of the pair with each choice and prints
// bytes (entropy), drift, estimates beside them, and seconds of CPU. A choice:
// RANK[,RESIDUAL_STEP[,FACTOR_STEP[,SCALE]]] or BITSbSPARSITY[,GROUP]; "/CHOICE" after it: that of the embedding and
// head.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "codec/encode/compact_encoder.h"
#include "codec/kernels/convert.h"
#include "tests/bench/checkpoint.h"

namespace modelstore {
namespace {

constexpr uint64_t kLeastElems = 65536;

struct Loaded : Checkpoint {
  std::map<std::string, TensorEntry> tensors;
};

Loaded Load(const char* path) {
  Loaded loaded{LoadCheckpoint(path), {}};
  for (const TensorEntry& entry : loaded.index.tensors) loaded.tensors.emplace(entry.name, entry);
  return loaded;
}

double CpuSeconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

CompactChoice ParseChoice(const std::string& text) {
  CompactChoice c;
  unsigned long long group = 0;
  if (std::sscanf(text.c_str(), "%ub%f,%llu", &c.bits, &c.sparsity, &group) >= 2) {
    c.group_elems = group;
    return c;
  }
  c.bits = 0;
  std::sscanf(text.c_str(), "%u,%f,%f,%f", &c.rank, &c.residual_step, &c.factor_step, &c.scale);
  return c;
}

struct Totals {
  double bytes = 0, drift = 0, error = 0, energy = 0, estimated_bytes = 0, estimated_drift = 0;
};

int Run(int argc, char** argv) {
  const Loaded base = Load(argv[1]), finetune = Load(argv[2]);
  const bool has_moments = std::string(argv[3]) != "-";
  const Loaded moments = has_moments ? Load(argv[3]) : Loaded{};
  std::vector<CompactChoice> linear, embedding;
  for (int i = 4; i < argc; ++i) {
    const std::string text = argv[i];
    const size_t slash = text.find('/');
    linear.push_back(ParseChoice(text.substr(0, slash)));
    embedding.push_back(slash == std::string::npos ? linear.back() : ParseChoice(text.substr(slash + 1)));
  }
  std::vector<const TensorEntry*> work;
  uint64_t elems = 0;
  for (const auto& [name, entry] : finetune.tensors) {
    if (entry.shape.size() != 2 || entry.shape[0] * entry.shape[1] < kLeastElems || !base.tensors.contains(name))
      continue;
    work.push_back(&entry);
    elems += entry.shape[0] * entry.shape[1];
  }
  std::sort(work.begin(), work.end(),
            [](const TensorEntry* a, const TensorEntry* b) { return a->end - a->begin > b->end - b->begin; });
  std::vector<Totals> totals(linear.size());
  double prepare = 0, analyze = 0, encode = 0;
  std::mutex mutex;
  std::atomic<size_t> next = 0;
  const auto worker = [&] {
    for (size_t at = next++; at < work.size(); at = next++) {
      const TensorEntry& entry = *work[at];
      std::vector<float> delta = finetune.Floats(entry);
      {
        const std::vector<float> from = base.Floats(base.tensors.at(entry.name));
        for (size_t e = 0; e < delta.size(); ++e) delta[e] -= from[e];
      }
      CompactInput input{entry.shape[0], entry.shape[1], delta, nullptr, {}};
      double t0 = CpuSeconds();
      std::shared_ptr<const InputMoments> prepared;
      if (const auto h = moments.tensors.find(entry.name); h != moments.tensors.end()) {
        auto made = InputMoments::Prepare(moments.Floats(h->second), entry.shape[1]);
        if (!made.ok()) std::fprintf(stderr, "%s: %s\n", entry.name.c_str(), made.status().ToString().c_str());
        if (made.ok()) prepared = *made;
      }
      input.moments = prepared.get();
      std::vector<float> weights;
      const auto rows = moments.tensors.find(entry.name + ".rows");
      if (rows != moments.tensors.end()) {
        const std::vector<float> pairs = moments.Floats(rows->second);
        double f = 0, p = 0;
        for (size_t i = 0; i < pairs.size(); i += 2) f += pairs[i], p += pairs[i + 1];
        for (size_t i = 0; i < pairs.size(); i += 2) {
          weights.push_back(static_cast<float>(pairs[i] / f + pairs[i + 1] / p + 1e-7));
        }
        input.row_weights = weights;
      }
      const auto& choices =
          rows != moments.tensors.end() || entry.name.find("embed") != std::string::npos ? embedding : linear;
      double t1 = CpuSeconds();
      const auto analysis = AnalyzeTensor(input, choices);
      double t2 = CpuSeconds();
      {
        const std::lock_guard lock(mutex);
        prepare += t1 - t0;
        analyze += t2 - t1;
      }
      for (size_t c = 0; c < choices.size() && std::getenv("ANALYZE") == nullptr; ++c) {
        const double t3 = CpuSeconds();
        const auto tensor = EncodeTensor(input, choices[c]);
        const double t4 = CpuSeconds();
        if (!tensor.ok() || !analysis.ok()) {
          std::fprintf(stderr, "%s: %s\n", entry.name.c_str(),
                       (tensor.ok() ? analysis.status() : tensor.status()).ToString().c_str());
          std::exit(1);
        }
        const std::lock_guard lock(mutex);
        encode += t4 - t3;
        const double share = static_cast<double>(delta.size()) / static_cast<double>(elems);
        Totals& t = totals[c];
        t.bytes += tensor->bytes;
        t.estimated_bytes += analysis->estimates[c + 1].bytes;
        t.drift += share * tensor->error / tensor->energy;
        t.estimated_drift += share * analysis->estimates[c + 1].error / analysis->energy;
        t.error += tensor->error;
        t.energy += tensor->energy;
        if (std::getenv("VERBOSE"))
          std::printf("%-48s %s bytes %9.0f (%9.0f) drift %.5f (%.5f)\n", entry.name.c_str(), argv[4 + c],
                      tensor->bytes, analysis->estimates[c + 1].bytes, tensor->error / tensor->energy,
                      analysis->estimates[c + 1].error / analysis->energy);
      }
    }
  };
  std::thread other(worker);
  worker();
  other.join();
  std::printf("%-24s %12s %9s %9s %12s %9s\n", "choice", "bytes", "ratio", "drift", "est. bytes", "est. drift");
  for (size_t c = 0; c < totals.size(); ++c) {
    std::printf("%-24s %12.0f %9.1f %9.5f %12.0f %9.5f\n", argv[4 + c], totals[c].bytes,
                2 * static_cast<double>(elems) / totals[c].bytes, totals[c].drift, totals[c].estimated_bytes,
                totals[c].estimated_drift);
  }
  std::printf("CPU seconds: moments %.1f, analysis of all choices %.1f, encoding %.1f (each %.1f)\n", prepare, analyze,
              encode, encode / static_cast<double>(totals.size()));
  return 0;
}

}  // namespace
}  // namespace modelstore

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr,
                 "usage: bench_compact BASE.safetensors FINETUNE.safetensors MOMENTS.safetensors|- CHOICE...\n");
    return 2;
  }
  return modelstore::Run(argc, argv);
}
