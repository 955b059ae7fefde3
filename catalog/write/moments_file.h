// MomentsFile: the second moments of a model's inputs, from a safetensors file (layer: catalog/write;
// docs/moments.md). Reads on demand; what the file says is checked before it is used. Thread-safe after Open.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "catalog/write/source_reader.h"
#include "codec/support/hash.h"
#include "codec/tensor/safetensors.h"

namespace modelstore {

class MomentsFile {
 public:
  // `source` outlives the object. Errors: InvalidArgument (no safetensors file), Io.
  static Result<MomentsFile> Open(const SourceFile& source);

  bool Lists(const std::string& name) const { return entries_.contains(name); }
  // What there is for tensor `name` of rows x columns: H, and weights of its rows. Errors: InvalidArgument when the
  // file has it in another shape or type: moments of another model.
  Result<bool> HasMoments(const std::string& name, uint64_t columns) const;
  Result<bool> HasRows(const std::string& name, uint64_t rows) const;

  // Whether the file has moments for a tensor of [rows, …] that is stored as [inputs, outputs]. Errors: as HasMoments.
  Result<bool> HasTransposed(const std::string& name, uint64_t rows) const;
  static std::string TransposedName(const std::string& name) { return name + ".transposed"; }
  // Of the bytes of tensor `name`'s H: tensors that share an input have equal copies. Errors: Io.
  Result<Hash128> HashOf(const std::string& name) const;
  // H, columns x columns. Errors: Io.
  Status Load(const std::string& name, std::vector<float>* out) const;
  // The mean of tensor `name`'s inputs. Errors: InvalidArgument (missing, of another shape), Io.
  Status CheckMean(const std::string& name, uint64_t columns) const;
  Status LoadMean(const std::string& name, uint64_t columns, std::vector<float>* out) const;
  // How much a block does, by the prefix of its names without the dot at its end. Errors: InvalidArgument (missing, no
  // finite number), Io.
  Result<double> Influence(const std::string& block) const;
  // How much the error of each row counts. Errors: InvalidArgument (not finite, negative), Io.
  Status LoadRowWeights(const std::string& name, std::vector<float>* out) const;

 private:
  explicit MomentsFile(const SourceFile& source) : source_(&source) {}
  Result<bool> Has(const std::string& name, const std::vector<uint64_t>& shape) const;
  Status Read(const std::string& name, std::vector<float>* out) const;

  const SourceFile* source_;
  std::map<std::string, TensorEntry> entries_;
};

}  // namespace modelstore
