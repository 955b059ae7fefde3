// Blocks to try a device with, and what the CPU makes of them (layer: gpu/engine).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "codec/decode/compact_decoder.h"
#include "codec/device/batch_builder.h"

namespace modelstore {

struct CorpusBlock {
  std::string name;   // for messages: codec, dtype, what is awkward about it
  std::string codec;  // "delta", "self", "compact"
  Frame frame;
  uint32_t index = 0;
  Bytes coded, prediction;  // of a stream
  // Of a compact block: tensors that its ranges are in, and the base.
  struct Compact {
    std::vector<uint16_t> factors, residual, scales;
    Bytes base;
  };
  std::shared_ptr<const Compact> compact;
  // Which block's bytes the prediction, or the only piece's base, is: then decoded on the device too.
  std::shared_ptr<const CorpusBlock> predicted_by;
  Bytes expected;
  bool is_good = true;  // false: the CPU calls it corrupt

  // Errors: as BatchBuilder's.
  Result<std::optional<BatchBuilder::Block>> AddTo(BatchBuilder& builder, bool is_wanted = true) const;
};

// Every codec and dtype; odd sizes, special values, damaged blocks. Deterministic; some MB.
std::vector<CorpusBlock> AwkwardBlocks();
// BF16 blocks like those of real finetunes, `bytes` of output in all: self-coded and deltas, or compact of `rank` with
// a residual. For measuring.
std::vector<CorpusBlock> OrdinaryBlocks(const std::string& codec, uint64_t bytes, uint32_t rank = 8);

// On the CPU, as the read path does it, into `out`. Errors: Corruption.
Status DecodeOnCpu(const CorpusBlock& block, MutableByteSpan out);

}  // namespace modelstore
