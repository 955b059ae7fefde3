// Codec bench: BASE.safetensors [FINETUNE.safetensors]: codes every tensor in memory, checks that it comes back, and
// prints shares of raw, encode and decode rates a core for each CPU target, as ratios to the plain target in the same
// run. `compact`: what rebuilding compact tensors costs, by rank, on made-up levels.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "codec/decode/block_decoder.h"
#include "codec/decode/compact_decoder.h"
#include "codec/encode/exact_encoder.h"
#include "codec/kernels/cpu_target.h"
#include "codec/kernels/level_tokens.h"
#include "tests/bench/checkpoint.h"

namespace modelstore {
namespace {

// Seconds by `clock`: the thread's own CPU time where another process may take the core, else the wall's.
double Now(clockid_t clock = CLOCK_THREAD_CPUTIME_ID) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Cycles a second of this core: a chain of dependent one-cycle additions.
double MeasureHertz() {
  double best = 0;
  for (int round = 0; round < 2000; ++round) {
    const double t = Now(CLOCK_MONOTONIC);
    uint64_t x = 1;
    for (int i = 0; i < 20'000; ++i)
      __asm__ volatile("add $1, %0\nadd $1, %0\nadd $1, %0\nadd $1, %0\nadd $1, %0" : "+r"(x));
    best = std::max(best, 100e3 / (Now(CLOCK_MONOTONIC) - t));
  }
  return best;
}

struct Coded {
  Frame frame;
  ByteSpan source;
  ByteSpan prediction;  // in the coded dtype
  Bytes converted;
  std::vector<Bytes> blocks;
};

ByteSpan TensorBytes(const Checkpoint& l, const TensorEntry& e) {
  return ByteSpan(l.bytes).subspan(e.begin, e.end - e.begin);
}

Bytes Sample(ByteSpan bytes, uint64_t elems, uint32_t width) {
  Bytes out;
  for (uint64_t w = 0; w < SampleWindowCount(elems); ++w) {
    const ByteSpan part = bytes.subspan(SampleWindowBegin(elems, w) * width, SampleWindowElems(elems, w) * width);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

struct EncodeTimes {
  double plan = 0, statistics = 0, fit = 0, blocks = 0;
};

Coded EncodeTensor(const TensorEntry& e, ByteSpan source, const TensorEntry* b, ByteSpan base, EncodeTimes& times) {
  Coded c;
  c.source = source;
  const uint32_t width = DTypeBytes(e.dtype);
  const uint64_t elems = source.size() / width;
  double t = Now();
  const Bytes sample = Sample(source, elems, width);
  const Bytes base_sample = b ? Sample(base, elems, DTypeBytes(b->dtype)) : Bytes{};
  EncodePlan plan = PlanTensor(e.dtype, elems, sample, b ? b->dtype : e.dtype, base_sample);
  times.plan += Now() - t;
  t = Now();
  const uint32_t coded_width = DTypeBytes(plan.coded_dtype);
  if (plan.encoding == Encoding::kDelta) {
    if (b->dtype == plan.coded_dtype) {
      c.prediction = base;
    } else {
      c.converted.resize(elems * coded_width);
      ConvertElements(b->dtype, plan.coded_dtype, base, c.converted);
      c.prediction = c.converted;
    }
  }
  FrameBuilder builder(plan);
  const uint32_t count = builder.frame().BlockCount();
  const auto part = [&](ByteSpan all, const Frame& f, uint32_t i, uint32_t w) {
    return all.empty() ? ByteSpan() : all.subspan(f.BlockBegin(i) * w, size_t{f.BlockElems(i)} * w);
  };
  for (uint32_t i = 0; i < count; ++i)
    builder.AddBlock(i, part(source, builder.frame(), i, width), part(c.prediction, builder.frame(), i, coded_width));
  times.statistics += Now() - t;
  t = Now();
  auto encoder = std::move(builder).Finish();
  times.fit += Now() - t;
  if (!encoder.ok()) {
    std::fprintf(stderr, "%s: %s\n", e.name.c_str(), encoder.status().ToString().c_str());
    std::exit(1);
  }
  t = Now();
  c.frame = encoder->frame();
  c.blocks.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    const Status s =
        encoder->Encode(i, part(source, c.frame, i, width), part(c.prediction, c.frame, i, coded_width), &c.blocks[i]);
    if (!s.ok()) {
      std::fprintf(stderr, "%s: %s\n", e.name.c_str(), s.ToString().c_str());
      std::exit(1);
    }
  }
  times.blocks += Now() - t;
  return c;
}

struct Item {
  const Coded* c;
  uint32_t block;
};

void AddItems(const Coded& c, std::vector<Item>& items) {
  for (uint32_t i = 0; i < c.blocks.size(); ++i) items.push_back({&c, i});
}

std::vector<Item> Items(const std::vector<Coded>& all) {
  std::vector<Item> items;
  for (const Coded& c : all) AddItems(c, items);
  return items;
}

MutableByteSpan DecodeItem(const Item& item, Bytes& out) {
  const Coded& c = *item.c;
  const uint32_t w = DTypeBytes(c.frame.coded_dtype);
  const ByteSpan prediction =
      c.frame.encoding == Encoding::kDelta
          ? c.prediction.subspan(c.frame.BlockBegin(item.block) * w, size_t{c.frame.BlockElems(item.block)} * w)
          : ByteSpan();
  const MutableByteSpan dest = MutableByteSpan(out).first(BlockBytes(c.frame, item.block));
  const Status s = DecodeBlock(c.frame, item.block, c.blocks[item.block], prediction, dest);
  if (!s.ok()) {
    std::fprintf(stderr, "%s\n", s.ToString().c_str());
    std::exit(1);
  }
  return dest;
}

void CheckAll(const std::vector<Item>& items) {
  Bytes out(kMaxBlockElems * 8);
  for (const Item& item : items) {
    const MutableByteSpan decoded = DecodeItem(item, out);
    const size_t at = item.c->frame.BlockBegin(item.block) * DTypeBytes(item.c->frame.dtype);
    if (!std::equal(decoded.begin(), decoded.end(), item.c->source.begin() + static_cast<ptrdiff_t>(at))) {
      std::fprintf(stderr, "decoded bytes differ from the source\n");
      std::exit(1);
    }
  }
}

// Seconds to decode everything on one core: the sum over blocks of each block's least time in several rounds, so that
// what else the machine does is left out.
double DecodeSeconds(const std::vector<Item>& items, int rounds) {
  Bytes out(kMaxBlockElems * 8);
  std::vector<double> least(items.size(), 1e9);
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < items.size(); ++i) {
      const double t = Now(CLOCK_MONOTONIC);
      DecodeItem(items[i], out);
      least[i] = std::min(least[i], Now(CLOCK_MONOTONIC) - t);
    }
  }
  double sum = 0;
  for (const double s : least) sum += s;
  return sum;
}

// Wall seconds with `threads` threads, the least of several rounds.
double WallSeconds(const std::vector<Item>& items, unsigned threads, int rounds) {
  double least = 1e9;
  for (int round = 0; round < rounds; ++round) {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      Bytes out(kMaxBlockElems * 8);
      for (size_t i = next++; i < items.size(); i = next++) DecodeItem(items[i], out);
    };
    const double t = Now(CLOCK_MONOTONIC);
    std::vector<std::thread> pool;
    for (unsigned i = 1; i < threads; ++i) pool.emplace_back(work);
    work();
    for (std::thread& th : pool) th.join();
    least = std::min(least, Now(CLOCK_MONOTONIC) - t);
  }
  return least;
}

void Bench(const char* label, const Checkpoint& model, const Checkpoint* base) {
  std::map<std::string, const TensorEntry*> by_name;
  if (base)
    for (const TensorEntry& e : base->index.tensors) by_name[e.name] = &e;
  std::vector<Coded> all;
  EncodeTimes times;
  uint64_t raw = 0, coded = 0, frames = 0, elems = 0;
  std::map<Encoding, uint64_t> kinds;
  for (const TensorEntry& e : model.index.tensors) {
    const ByteSpan source = TensorBytes(model, e);
    const auto b = by_name.find(e.name);
    const TensorEntry* be = b == by_name.end() || b->second->shape != e.shape ? nullptr : b->second;
    all.push_back(EncodeTensor(e, source, be, be ? TensorBytes(*base, *be) : ByteSpan(), times));
    raw += source.size();
    elems += source.size() / DTypeBytes(e.dtype);
    for (const Bytes& block : all.back().blocks) coded += block.size() + 8;
    frames += SerializeFrame(all.back().frame).size();
    kinds[all.back().frame.encoding] += source.size();
  }
  std::printf("%s: %.1f MB, blocks %.5f + frames %.5f = %.5f of raw", label, static_cast<double>(raw) / 1e6,
              static_cast<double>(coded) / static_cast<double>(raw),
              static_cast<double>(frames) / static_cast<double>(raw),
              static_cast<double>(coded + frames) / static_cast<double>(raw));
  constexpr const char* kNames[] = {"raw", "zstd", "self", "delta"};
  for (const auto& [kind, bytes] : kinds)
    std::printf(", %s %.4f", kNames[static_cast<int>(kind)], static_cast<double>(bytes) / static_cast<double>(raw));
  const double total = times.plan + times.statistics + times.fit + times.blocks;
  std::printf("\n  encode %.3f GB/s a core (plan %.3f s, statistics %.3f s, fit %.3f s, blocks %.3f s)\n",
              static_cast<double>(raw) / total / 1e9, times.plan, times.statistics, times.fit, times.blocks);
  double plain = 0;
  const std::vector<Item> items = Items(all);
  const double hertz = MeasureHertz();
  for (const CpuTarget target : AvailableCpuTargets()) {
    ForceCpuTarget(target);
    CheckAll(items);
    const double one = DecodeSeconds(items, 9);
    const double ratio = WallSeconds(items, 1, 5) / WallSeconds(items, 2, 5);
    if (target == CpuTarget::kBaseline) plain = one;
    std::printf(
        "  decode %-8s %.2f GB/s a core, %.2f cycles an element at %.2f GHz, %.2fx plain, two threads %.2fx one\n",
        std::string(CpuTargetName(target)).c_str(), static_cast<double>(raw) / one / 1e9,
        one * hertz / static_cast<double>(elems), hertz / 1e9, plain / one, ratio);
  }
}

// A compact tensor of 24 segments of 1536 x 576, and the coded blocks of its residual.
struct Compact {
  Frame frame;
  std::vector<uint16_t> factors, residual, scales;
  Coded residual_blocks;
};

std::vector<uint16_t> RandomTokens(uint64_t tokens, unsigned group, double sigma, std::mt19937_64& rng) {
  std::normal_distribution<double> normal(0, sigma);
  std::vector<int8_t> levels(tokens * group);
  const double most = group == 2 ? kMaxPairLevel : kMaxQuadLevel;
  for (int8_t& level : levels) level = static_cast<int8_t>(std::clamp(std::round(normal(rng)), -most, most));
  std::vector<uint16_t> patterns(tokens);
  LevelsToTokens(levels.data(), tokens, group, patterns.data());
  return patterns;
}

Compact MakeCompact(DType dtype, uint32_t rank, bool residual) {
  std::mt19937_64 rng(rank);
  Compact c;
  CompactFrame layout;
  layout.segments.resize(24);
  for (CompactSegment& s : layout.segments) {
    s.rows = 1536;
    s.columns = 576;
    s.rank = rank;
    s.has_residual = residual;
    s.biases = {8, 4, 2};
  }
  c.frame.encoding = Encoding::kCompact;
  c.frame.dtype = c.frame.coded_dtype = dtype;
  c.frame.elems = layout.segments.size() * layout.segments[0].elems();
  c.frame.block_elems = kBlockBytes / DTypeBytes(dtype);
  if (!layout.FinishLayout(c.frame.elems).ok()) std::exit(1);
  c.factors = RandomTokens(layout.factor_tokens, kFactorTokenLevels, 1.5, rng);
  c.residual = RandomTokens(layout.residual_tokens, kResidualTokenLevels, 0.3, rng);  // nine of ten are 0
  c.scales.assign(layout.scales, 0x3a00);
  c.frame.compact = std::make_shared<const CompactFrame>(std::move(layout));
  if (!residual) return c;
  c.residual_blocks.source = std::as_bytes(std::span(c.residual));
  FrameBuilder builder(TokenPlan(c.residual.size(), Sample(c.residual_blocks.source, c.residual.size(), 2)));
  const auto part = [&](const Frame& f, uint32_t i) {
    return c.residual_blocks.source.subspan(f.BlockBegin(i) * 2, size_t{f.BlockElems(i)} * 2);
  };
  for (uint32_t i = 0; i < builder.frame().BlockCount(); ++i) builder.AddBlock(i, part(builder.frame(), i), {});
  const auto encoder = std::move(builder).Finish();
  if (!encoder.ok()) std::exit(1);
  c.residual_blocks.frame = encoder->frame();
  c.residual_blocks.blocks.resize(encoder->frame().BlockCount());
  for (uint32_t i = 0; i < encoder->frame().BlockCount(); ++i)
    if (!encoder->Encode(i, part(encoder->frame(), i), {}, &c.residual_blocks.blocks[i]).ok()) std::exit(1);
  return c;
}

// Seconds to rebuild all of it on one core, by the least time of each block in several rounds.
double RebuildSeconds(const Compact& c, ByteSpan base, int rounds) {
  const auto part = [](const std::vector<uint16_t>& all, CompactPiece::Range range) {
    return std::as_bytes(std::span(all).subspan(range.begin, range.count));
  };
  Bytes out(kBlockBytes);
  CompactScratch scratch;
  double sum = 0;
  for (uint32_t b = 0; b < c.frame.BlockCount(); ++b) {
    double least = 1e9;
    for (int round = 0; round < rounds; ++round) {
      const double t = Now(CLOCK_MONOTONIC);
      for (const CompactPiece& p : CompactPieces(c.frame, b)) {
        const CompactInputs inputs = {part(c.factors, p.right), part(c.factors, p.left), part(c.residual, p.residual),
                                      part(c.scales, p.scales), part(c.scales, p.steps)};
        const uint32_t width = DTypeBytes(c.frame.dtype);
        if (!RebuildPiece(c.frame, p, inputs, base.subspan(p.block_begin * width, p.elems * width), scratch,
                          MutableByteSpan(out).subspan(p.block_begin * width, p.elems * width))
                 .ok())
          std::exit(1);
      }
      least = std::min(least, Now(CLOCK_MONOTONIC) - t);
    }
    sum += least;
  }
  return sum;
}

void BenchCompact() {
  const double hertz = MeasureHertz();
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    const Bytes base(kBlockBytes, std::byte{0x3c});
    for (const uint32_t rank : {0, 1, 4, 16, 64}) {
      for (const bool residual : {false, true}) {
        if (dtype != DType::kBF16 && (rank != 16 || residual)) continue;
        const Compact c = MakeCompact(dtype, rank, residual);
        const double elems = static_cast<double>(c.frame.elems);
        std::printf("%s rank %u%s:", std::string(DTypeName(dtype)).c_str(), rank, residual ? " + residual" : "");
        for (const CpuTarget target : AvailableCpuTargets()) {
          ForceCpuTarget(target);
          const double rebuild = RebuildSeconds(c, base, 9);
          std::printf("  %s %.2f cycles an element, %.2f GB/s", std::string(CpuTargetName(target)).c_str(),
                      rebuild * hertz / elems, elems * DTypeBytes(dtype) / rebuild / 1e9);
          if (!residual) continue;
          std::vector<Item> items;
          AddItems(c.residual_blocks, items);
          std::printf(" (+ %.2f for its tokens)", DecodeSeconds(items, 9) * hertz / elems);
        }
        std::printf("\n");
      }
    }
  }
}

}  // namespace
}  // namespace modelstore

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s BASE.safetensors [FINETUNE.safetensors] | compact\n", argv[0]);
    return 2;
  }
  if (std::string_view(argv[1]) == "compact") {
    modelstore::BenchCompact();
    return 0;
  }
  const modelstore::Checkpoint base = modelstore::LoadCheckpoint(argv[1]);
  modelstore::Bench("by itself", base, nullptr);
  if (argc > 2) {
    const modelstore::Checkpoint finetune = modelstore::LoadCheckpoint(argv[2]);
    modelstore::Bench("as a delta", finetune, &base);
  }
}
