// Where a decoder's residual stream is read and written, by architecture (layer: catalog/derive). Pure.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// One residual connection: norm -> readers -> … -> writers, whose output is added.
struct SliceStep {
  std::string norm;                         // the norm's weight, [hidden]
  std::string norm_bias;                    // of a LayerNorm, [hidden]
  std::vector<std::string> readers;         // [out, hidden]; all read the norm's output
  std::vector<std::string> readers_biases;  // [out], of each reader, where the norm has a bias
  std::vector<std::string> writers;         // [hidden, in], or a bias [hidden]
  std::string shortcut;  // the tensor that the stream passes through, when bases change: [next, this]
};

struct SliceLayout {
  std::string model_type, embedding;  // embedding: [vocabulary, hidden]
  std::vector<std::string> added;     // to what the embedding gives: those of positions, [positions, hidden]
  std::vector<SliceStep> steps;       // in the order of the forward pass
  std::string final_norm, head;       // head: [vocabulary, hidden]; the embedding where it is tied
  bool is_tied = false;
  bool has_layer_norms = false;  // which take the mean over the stream away
  uint64_t hidden = 0, heads = 0;
};

// Of a checkpoint with this config.json and tensors: Llama, Mistral, Qwen2 and Qwen3, which differ in nothing that
// slicing touches, and OPT. Errors: Unsupported (no JSON object, another architecture, or another form of
// it; a tensor that it should not have, or lacks: it is named).
Result<SliceLayout> LayOutSlices(ByteSpan config, std::span<const std::string> tensors);

// The configuration of the sliced model. Of one basis for all: the same architecture with a hidden size of `size`.
// Else: the stream is `size` wide between blocks, and the folder's modelling file makes the model. Errors:
// Unsupported.
Result<Bytes> ConfigSliced(ByteSpan config, const SliceLayout& layout, uint64_t size, bool one_basis);

// modeling_sliced.py, which a model of a basis a block needs beside it.
inline constexpr std::string_view kModelingFile = "modeling_sliced.py";
std::string_view ModelingSource();

}  // namespace modelstore
