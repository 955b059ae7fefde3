#include "codec/device/batch_builder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>

namespace modelstore {
namespace {

constexpr uint64_t Aligned(uint64_t bytes) {
  return (bytes + kDeviceAlignment - 1) / kDeviceAlignment * kDeviceAlignment;
}
// Statuses are bytes at the output's beginning; how many there will be is not known before the end.
uint64_t StatusBytes(uint64_t output_bytes) {
  constexpr uint64_t kMostStatuses = 1 << 20;
  return Aligned(std::min(kMostStatuses, output_bytes / 64));
}

DeviceKernel KernelOf(const Frame& frame) {
  const uint32_t delta = frame.encoding == Encoding::kDelta ? 1 : 0;
  if (frame.coded_dtype != frame.dtype)
    return static_cast<DeviceKernel>(static_cast<uint32_t>(DeviceKernel::kSelfWidened) + delta);
  const auto log = static_cast<uint32_t>(std::countr_zero(DTypeBytes(frame.dtype)));
  return static_cast<DeviceKernel>(2 * log + delta);
}

DeviceKernel RebuildKernelOf(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return DeviceKernel::kRebuildBf16;
    case DType::kF16:
      return DeviceKernel::kRebuildF16;
    case DType::kF32:
      return DeviceKernel::kRebuildF32;
    case DType::kF64:
      return DeviceKernel::kRebuildF64;
    case DType::kF8E4M3:
      return DeviceKernel::kRebuildE4m3;
    default:
      return DeviceKernel::kRebuildE5m2;
  }
}

std::vector<float> FloatsOf(ByteSpan bf16) {
  std::vector<float> floats(bf16.size() / DTypeBytes(DType::kBF16));
  ConvertElements(DType::kBF16, DType::kF32, bf16, std::as_writable_bytes(std::span(floats)));
  return floats;
}

}  // namespace

struct BatchBuilder::Mark {
  uint64_t used[3];
  uint64_t array_bytes;
  uint32_t statuses;
  size_t blocks, tables, streams, unpacks, pieces, tiles;
};

BatchBuilder::BatchBuilder(const Limits& limits) : limits_(limits) {
  used_[static_cast<unsigned>(DeviceSpace::kInput)] = Aligned(sizeof(DeviceProgram));
  // Arrays begin aligned, and launches of what is not a stream are one a kernel at most.
  constexpr uint64_t kArrays = 7;
  array_bytes_ = kArrays * kDeviceAlignment + Aligned(kDeviceKernels * sizeof(DeviceLaunch));
  used_[static_cast<unsigned>(DeviceSpace::kOutput)] = StatusBytes(limits.output_bytes);
}

BatchBuilder::Mark BatchBuilder::MarkNow() const {
  return {{used_[0], used_[1], used_[2]},
          array_bytes_,
          statuses_,
          blocks_.size(),
          tables_.size(),
          streams_.size(),
          unpacks_.size(),
          pieces_.size(),
          tiles_.size()};
}

void BatchBuilder::ReturnTo(const Mark& mark) {
  std::copy_n(mark.used, 3, used_);
  array_bytes_ = mark.array_bytes;
  statuses_ = mark.statuses;
  blocks_.resize(mark.blocks);
  tables_.resize(mark.tables);
  streams_.resize(mark.streams);
  unpacks_.resize(mark.unpacks);
  pieces_.resize(mark.pieces);
  tiles_.resize(mark.tiles);
  std::erase_if(table_of_serial_, [&](const auto& entry) { return entry.second >= mark.tables; });
  const auto is_behind = [&](DeviceRef ref) {
    return ref.bits >= mark.used[static_cast<unsigned>(DeviceSpace::kInput)];
  };
  std::erase_if(units_, [&](const auto& entry) { return is_behind(entry.second); });
  std::erase_if(rights_, [&](const auto& entry) {
    return std::ranges::any_of(entry.second.statuses, [&](uint32_t status) { return status >= mark.statuses; });
  });
}

bool BatchBuilder::Fits() const {
  const uint64_t inputs = used_[static_cast<unsigned>(DeviceSpace::kInput)] + array_bytes_;
  return inputs <= limits_.input.size() && used_[static_cast<unsigned>(DeviceSpace::kOutput)] <= limits_.output_bytes &&
         used_[static_cast<unsigned>(DeviceSpace::kScratch)] <= limits_.scratch_bytes &&
         statuses_ <= StatusBytes(limits_.output_bytes);
}

bool BatchBuilder::Take(DeviceSpace space, uint64_t bytes, DeviceRef* ref) {
  uint64_t& used = used_[static_cast<unsigned>(space)];
  *ref = DeviceRef::Of(space, used);
  used += Aligned(bytes);
  return Fits();
}

bool BatchBuilder::CopyIn(ByteSpan bytes, DeviceRef* ref) {
  const uint64_t at = used_[static_cast<unsigned>(DeviceSpace::kInput)];
  if (!Take(DeviceSpace::kInput, bytes.size(), ref)) return false;
  if (!bytes.empty()) std::memcpy(limits_.input.data() + at, bytes.data(), bytes.size());
  return true;
}

bool BatchBuilder::AddTables(const Frame& frame, uint32_t* index) {
  const DecodeTables& t = *frame.tables;
  const auto [known, is_new] = table_of_serial_.emplace(t.serial, static_cast<uint32_t>(tables_.size()));
  *index = known->second;
  if (!is_new) return true;
  DeviceTables& made = tables_.emplace_back();
  array_bytes_ += Aligned(sizeof(DeviceTables));
  made.contexts = t.contexts;
  made.context_symbols = t.symbols;
  made.exponent_low = t.exponent_low;
  made.exponent_shift = t.layout.exponent_shift;
  made.exponent_mask = t.layout.exponent_mask;
  made.low_bit = t.low_bit ? 1 : 0;
  std::vector<uint8_t> slots(made.slot_bytes());
  std::vector<WarpSymbol> symbols(made.symbol_count());
  std::vector<uint32_t> high_bases(t.layout.width_bits == 64 ? symbols.size() : 0);
  for (uint32_t c = 0; c < t.contexts; ++c) {
    for (uint32_t s = 0; s < t.symbols; ++s) {
      const size_t at = size_t{c} * t.symbols + s;
      const uint32_t begin = t.start[at], end = s + 1 < t.symbols ? t.start[at + 1] : kProbScale;
      if (begin >= end) continue;
      std::fill(slots.begin() + (c << kProbBits) + begin, slots.begin() + (c << kProbBits) + end,
                static_cast<uint8_t>(s));
      symbols[at].packed =
          begin | (end - begin) << kWarpFreqShift | static_cast<uint32_t>(t.raw_bits[at]) << kWarpRawBitsShift;
      symbols[at].base = static_cast<uint32_t>(t.base[at]);
      if (!high_bases.empty()) high_bases[at] = static_cast<uint32_t>(t.base[at] >> 32);
    }
  }
  DeviceRef slots_at, symbols_at, high_bases_at;
  if (!CopyIn(slots, &slots_at) || !CopyIn(symbols, &symbols_at) || !CopyIn(high_bases, &high_bases_at)) return false;
  made.slots = slots_at;
  made.symbols = symbols_at;
  made.high_bases = high_bases_at;
  return true;
}

bool BatchBuilder::IsWhole(const Prediction& prediction, uint64_t bytes, uint32_t width) const {
  if (!prediction.block) return prediction.bytes.size() == bytes;
  const Made& from = blocks_[*prediction.block];
  return !from.is_compact && prediction.offset_bytes % width == 0 && prediction.offset_bytes <= from.bytes &&
         bytes <= from.bytes - prediction.offset_bytes;
}

bool BatchBuilder::AddPrediction(const Prediction& prediction, Made* made, DeviceRef* ref) {
  if (!prediction.block) return CopyIn(prediction.bytes, ref);
  const Made& from = blocks_[*prediction.block];
  *ref = from.out + prediction.offset_bytes;
  made->needs.push_back(*prediction.block);
  made->wave = std::max(made->wave, from.wave + 1);
  return true;
}

Result<std::optional<BatchBuilder::Block>> BatchBuilder::AddBlock(const Frame& frame, uint32_t index, ByteSpan coded,
                                                                  const Prediction& prediction, bool is_wanted) {
  const uint64_t elems = frame.BlockElems(index);
  if (frame.encoding == Encoding::kDelta) {
    const uint32_t width = DTypeBytes(frame.coded_dtype);
    if (!IsWhole(prediction, elems * width, width)) return Internal("a prediction that does not fit its block");
  }
  ASSIGN_OR_RETURN(const CodedStreams streams, SplitBlock(frame, index, coded));
  const Mark mark = MarkNow();
  if (AddStreams(frame, streams, prediction, is_wanted)) return std::optional(static_cast<Block>(blocks_.size() - 1));
  ReturnTo(mark);
  return std::optional<Block>();
}

bool BatchBuilder::AddStreams(const Frame& frame, const CodedStreams& coded, const Prediction& prediction,
                              bool is_wanted) {
  const bool is_delta = frame.encoding == Encoding::kDelta;
  Made made;
  for (unsigned s = 0; s < coded.count; ++s) made.bytes += uint64_t{coded.streams[s].elems} * DTypeBytes(frame.dtype);
  uint32_t tables = 0;
  DeviceRef predicted, classes;
  if (!AddTables(frame, &tables)) return false;
  if (!Take(is_wanted ? DeviceSpace::kOutput : DeviceSpace::kScratch, made.bytes, &made.out)) return false;
  if (is_delta) {
    if (!AddPrediction(prediction, &made, &predicted)) return false;
  } else {
    std::vector<uint8_t> of_chunks(made.bytes / DTypeBytes(frame.dtype) / kSelfChunkElems + 1);
    for (uint32_t c = 0; c < of_chunks.size(); ++c)
      of_chunks[c] = c / 4 < coded.class_map.size() ? ClassOf(coded.class_map, c) : uint8_t{0};
    if (!CopyIn(of_chunks, &classes)) return false;
  }
  made.first_status = statuses_;
  uint64_t at = 0;
  for (unsigned s = 0; s < coded.count; ++s) {
    Stream& pending = streams_.emplace_back();
    array_bytes_ += Aligned(sizeof(DeviceStream)) + Aligned(sizeof(DeviceGroup)) + Aligned(sizeof(DeviceLaunch));
    pending.wave = made.wave;
    pending.kernel = KernelOf(frame);
    pending.tables = tables;
    DeviceStream& stream = pending.stream;
    DeviceRef states, words;
    if (!CopyIn(coded.streams[s].states, &states) || !CopyIn(coded.streams[s].words, &words)) return false;
    stream.states = states;
    stream.words = words;
    stream.word_count = static_cast<uint32_t>(coded.streams[s].words.size() / sizeof(uint16_t));
    stream.elems = coded.streams[s].elems;
    if (is_delta) stream.prediction = predicted + at * DTypeBytes(frame.coded_dtype);
    if (!is_delta) stream.classes = classes + at / kSelfChunkElems;
    stream.out = made.out + at * DTypeBytes(frame.dtype);
    stream.status = statuses_++;
    at += stream.elems;
  }
  made.end_status = statuses_;
  blocks_.push_back(std::move(made));
  return Fits();
}

bool BatchBuilder::AddUnpacks(ByteSpan tokens, uint64_t first_level, uint64_t levels, DeviceRef scales, uint32_t rank,
                              Factors* factors) {
  DeviceRef tokens_at;
  if (!CopyIn(tokens, &tokens_at) || !Take(DeviceSpace::kScratch, levels * sizeof(float), &factors->out)) return false;
  // Each warp's share begins with a token and with the first rank.
  const uint64_t period = scales == DeviceRef{} ? 2 : uint64_t{2} * rank;
  const uint64_t share = std::max<uint64_t>(kUnpackLevels / period, 1) * period;
  for (uint64_t at = 0; at < levels; at += share) {
    DeviceUnpack& unpack = unpacks_.emplace_back();
    array_bytes_ += Aligned(sizeof(DeviceUnpack));
    unpack.tokens = tokens_at + at / 2 * sizeof(uint16_t);
    unpack.scales = scales;
    unpack.out = factors->out + at * sizeof(float);
    unpack.first_level = static_cast<uint32_t>(first_level);
    unpack.levels = static_cast<uint32_t>(std::min(share, levels - at));
    unpack.rank = rank;
    unpack.status = statuses_;
    factors->statuses.push_back(statuses_++);
  }
  return Fits();
}

Result<std::optional<BatchBuilder::Block>> BatchBuilder::AddCompact(const Frame& frame, uint32_t index,
                                                                    std::span<const Piece> pieces) {
  for (const Piece& piece : pieces) {
    const uint32_t width = DTypeBytes(frame.dtype);
    const bool residual_fits = !piece.residual.block ||
                               IsWhole(piece.residual, piece.piece.residual.count * sizeof(uint16_t), sizeof(uint16_t));
    if (!IsWhole(piece.prediction, piece.piece.elems * width, width) || !residual_fits)
      return Internal("a prediction that does not fit its piece");
    RETURN_IF_ERROR(CheckInputs(piece.piece, piece.inputs, !piece.residual.block));
  }
  const Mark mark = MarkNow();
  Made made;
  made.bytes = uint64_t{frame.BlockElems(index)} * DTypeBytes(frame.dtype);
  made.is_compact = true;
  made.first_status = statuses_;
  bool fits = Take(DeviceSpace::kOutput, made.bytes, &made.out);
  for (size_t i = 0; fits && i < pieces.size(); ++i)
    fits = AddPiece(frame, pieces[i], made.out + pieces[i].piece.block_begin * DTypeBytes(frame.dtype), &made);
  made.end_status = statuses_;
  if (!fits) {
    ReturnTo(mark);
    return std::optional<Block>();
  }
  blocks_.push_back(std::move(made));
  return std::optional(static_cast<Block>(blocks_.size() - 1));
}

bool BatchBuilder::AddPiece(const Frame& frame, const Piece& from, DeviceRef out, Made* made) {
  const CompactSegment& s = *from.piece.segment;
  const CompactInputs& inputs = from.inputs;
  const PieceExtent extent = ExtentOf(from.piece);
  DevicePiece piece;
  array_bytes_ += Aligned(sizeof(DevicePiece));
  piece.out = out;
  piece.first_elem = s.first_elem + from.piece.begin;
  piece.elems = static_cast<uint32_t>(from.piece.elems);
  piece.rank = s.rank;
  piece.seed = frame.compact->seed;
  piece.is_wide = s.wide_residual ? 1 : 0;
  piece.is_nearest = s.nearest ? 1 : 0;
  if (!AddPrediction(from.prediction, made, &piece.prediction)) return false;
  if (from.piece.right.count != 0) {
    // The right factors are the same for all pieces of a segment.
    auto right = rights_.find(&s);
    if (right == rights_.end()) {
      Factors factors;
      if (!AddUnpacks(inputs.right, 0, uint64_t{s.rank} * s.columns, DeviceRef(), s.rank, &factors)) return false;
      right = rights_.emplace(&s, std::move(factors)).first;
    }
    piece.right = right->second.out;
    piece.columns = static_cast<uint32_t>(s.columns);
    piece.first_column = static_cast<uint32_t>(from.piece.begin % s.columns);
    made->unpacks.insert(made->unpacks.end(), right->second.statuses.begin(), right->second.statuses.end());
    Factors left;
    DeviceRef scales;
    const uint64_t rows = extent.end_factor_row - extent.first_factor_row;
    if (!CopyIn(FloatsOf(inputs.scales), &scales) ||
        !AddUnpacks(inputs.left, extent.first_left_level(s.rank), rows * s.rank, scales, s.rank, &left))
      return false;
    piece.weights = left.out;
    if (!s.row_mask.empty()) {
      std::vector<uint32_t> places;
      uint32_t next = 0;
      for (uint64_t row = extent.first_row; row < extent.end_row; ++row)
        places.push_back(s.has_factors(row) ? next++ : kNoFactors);
      if (!CopyIn(places, &piece.factor_rows)) return false;
    }
  }
  if (s.has_residual) {
    const Prediction residual = from.residual.block ? from.residual : Prediction{.bytes = inputs.residual};
    if (!AddPrediction(residual, made, &piece.residual) || !CopyIn(FloatsOf(inputs.steps), &piece.steps)) return false;
    piece.token_offset = static_cast<uint32_t>(from.piece.begin % s.residual_token_levels());
    if (!AddUnits(s.biases, &piece.units)) return false;
    // Steps in 32 bits: only where they change within the piece counts, which has fewer than 2^20 elements.
    if (from.piece.steps.count > 1) {
      constexpr uint32_t kLargeGroup = 1 << 30;
      static_assert(kLargeGroup > 4 * kMaxBlockElems);
      const uint64_t before = from.piece.begin % s.step_elems(), left = s.step_elems() - before;
      const bool is_large = s.step_elems() > kLargeGroup;
      piece.group_elems = is_large ? kLargeGroup : static_cast<uint32_t>(s.step_elems());
      piece.group_offset = static_cast<uint32_t>(is_large ? kLargeGroup - left : before);
    }
  }
  const uint64_t alignment = std::min<uint64_t>(kRunElems * DTypeBytes(frame.dtype), kDeviceAlignment);
  const auto is_whole = [](uint32_t elems) { return elems % kRunElems == 0; };
  piece.is_aligned = is_whole(piece.elems) && is_whole(piece.columns) && is_whole(piece.first_column) &&
                     is_whole(piece.group_elems) && is_whole(piece.group_offset) && piece.token_offset == 0 &&
                     piece.prediction.offset() % alignment == 0 && piece.out.offset() % alignment == 0;
  piece.status = statuses_++;
  for (uint64_t at = 0; at < from.piece.elems; at += kTileElems) {
    tiles_.push_back(
        {RebuildKernelOf(frame.dtype), {static_cast<uint32_t>(pieces_.size()), static_cast<uint32_t>(at)}});
    array_bytes_ += Aligned(sizeof(DeviceTile));
  }
  pieces_.push_back(piece);
  return Fits();
}

bool BatchBuilder::AddUnits(const std::array<uint8_t, 3>& biases, DeviceRef* ref) {
  const auto [known, is_new] = units_.emplace(biases, DeviceRef());
  if (is_new) {
    float of_biases[3];
    for (unsigned i = 0; i < 3; ++i) of_biases[i] = static_cast<float>(biases[i]) * kBiasUnit;
    std::vector<float> units(kWarpUnits);
    for (uint32_t byte = 0; byte < kWarpUnits; ++byte)
      units[byte] = ResidualUnits(static_cast<int8_t>(static_cast<uint8_t>(byte)), of_biases);
    if (!CopyIn(units, &known->second)) {
      units_.erase(known);
      return false;
    }
  }
  *ref = known->second;
  return true;
}

const DeviceProgram& BatchBuilder::Finish() {
  // By wave; within it one launch a kernel, and groups of one tensor.
  std::stable_sort(streams_.begin(), streams_.end(), [](const Stream& a, const Stream& b) {
    return std::tie(a.wave, a.kernel, a.tables) < std::tie(b.wave, b.kernel, b.tables);
  });
  std::stable_sort(tiles_.begin(), tiles_.end(), [](const Tile& a, const Tile& b) { return a.kernel < b.kernel; });
  std::vector<DeviceStream> streams;
  std::vector<DeviceGroup> groups;
  std::vector<DeviceTile> tiles;
  std::vector<DeviceLaunch> launches;
  for (size_t i = 0; i < streams_.size(); ++i) {
    const Stream* before = i == 0 ? nullptr : &streams_[i - 1];
    const bool same_launch =
        before != nullptr && before->wave == streams_[i].wave && before->kernel == streams_[i].kernel;
    const bool same_group =
        same_launch && before->tables == streams_[i].tables && groups.back().stream_count < kGroupStreams;
    if (!same_launch) launches.push_back({streams_[i].kernel, static_cast<uint32_t>(groups.size()), 0});
    if (!same_group) {
      groups.push_back({streams_[i].tables, static_cast<uint32_t>(i), 0});
      ++launches.back().count;
    }
    ++groups.back().stream_count;
    streams.push_back(streams_[i].stream);
  }
  if (!unpacks_.empty()) launches.push_back({DeviceKernel::kUnpack, 0, static_cast<uint32_t>(unpacks_.size())});
  for (size_t i = 0; i < tiles_.size(); ++i) {
    if (i == 0 || tiles_[i].kernel != tiles_[i - 1].kernel)
      launches.push_back({tiles_[i].kernel, static_cast<uint32_t>(i), 0});
    ++launches.back().count;
    tiles.push_back(tiles_[i].tile);
  }
  array_bytes_ = 0;  // what was reserved for these
  DeviceProgram program;
  const auto put = [&](const auto& values) {
    const uint64_t at = used_[static_cast<unsigned>(DeviceSpace::kInput)];
    DeviceRef ref;
    CopyIn(values, &ref);
    return at;
  };
  program.tables = put(tables_);
  program.streams = put(streams);
  program.groups = put(groups);
  program.unpacks = put(unpacks_);
  program.pieces = put(pieces_);
  program.tiles = put(tiles);
  program.launches = put(launches);
  program.launch_count = static_cast<uint32_t>(launches.size());
  program.status_count = statuses_;
  program.input_bytes = used_[static_cast<unsigned>(DeviceSpace::kInput)];
  program.output_bytes = used_[static_cast<unsigned>(DeviceSpace::kOutput)];
  program.scratch_bytes = used_[static_cast<unsigned>(DeviceSpace::kScratch)];
  std::memcpy(limits_.input.data(), &program, sizeof(program));
  return *reinterpret_cast<const DeviceProgram*>(limits_.input.data());
}

bool BatchBuilder::Succeeded(Block block, ByteSpan output) const {
  const Made& made = blocks_[block];
  const auto ok = [&](uint32_t status) { return output[status] == std::byte{1}; };
  for (uint32_t status = made.first_status; status < made.end_status; ++status) {
    if (!ok(status)) return false;
  }
  return std::ranges::all_of(made.unpacks, ok) &&
         std::ranges::all_of(made.needs, [&](Block needed) { return Succeeded(needed, output); });
}

ByteSpan BatchBuilder::BytesOf(Block block, ByteSpan output) const {
  return output.subspan(blocks_[block].out.offset(), blocks_[block].bytes);
}

}  // namespace modelstore
