// A safetensors file in memory, for benchmarks. Ends the program with a message when it cannot be read.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "codec/kernels/convert.h"
#include "codec/support/bytes.h"
#include "codec/tensor/safetensors.h"

namespace modelstore {

struct Checkpoint {
  Bytes bytes;
  TensorIndex index;

  // A floating-point tensor's elements.
  std::vector<float> Floats(const TensorEntry& entry) const {
    std::vector<float> out((entry.end - entry.begin) / DTypeBytes(entry.dtype));
    ConvertFloats(entry.dtype, DType::kF32, bytes.data() + entry.begin, reinterpret_cast<std::byte*>(out.data()),
                  out.size());
    return out;
  }
};

inline Checkpoint LoadCheckpoint(const char* path) {
  Checkpoint checkpoint;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    std::fprintf(stderr, "%s: is a folder; name one of its .safetensors files\n", path);
    std::exit(2);
  }
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) {
    std::fprintf(stderr, "%s: cannot open\n", path);
    std::exit(1);
  }
  Bytes& bytes = checkpoint.bytes;
  bytes.resize(static_cast<size_t>(in.tellg()));
  in.seekg(0);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  auto header = SafetensorsHeaderBytes(ByteSpan(bytes).first(8), bytes.size());
  auto index = header.ok() ? ParseSafetensorsHeader(ByteSpan(bytes).first(*header), bytes.size())
                           : Result<TensorIndex>(header.status());
  if (!index.ok()) {
    std::fprintf(stderr, "%s: %s\n", path, index.status().ToString().c_str());
    std::exit(1);
  }
  checkpoint.index = std::move(index).value();
  return checkpoint;
}

}  // namespace modelstore
