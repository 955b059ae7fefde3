#include "catalog/write/moments_file.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace modelstore {
namespace {

constexpr uint64_t kReadBytes = 4 << 20;

std::string ShapeText(const std::vector<uint64_t>& shape) {
  std::string text = "[";
  for (const uint64_t dim : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

std::string RowsName(const std::string& name) { return name + ".rows"; }
std::string MeanName(const std::string& name) { return name + ".mean"; }

}  // namespace

Result<MomentsFile> MomentsFile::Open(const SourceFile& source) {
  MomentsFile file(source);
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(source));
  RETURN_IF_ERROR(reader.CheckUnchanged());
  const auto parse = [&]() -> Result<TensorIndex> {
    ASSIGN_OR_RETURN(const Bytes header,
                     LoadSafetensorsHeader(source.bytes, [&](MutableByteSpan out) { return reader.ReadAt(0, out); }));
    return ParseSafetensorsHeader(header, source.bytes);
  };
  Result<TensorIndex> index = parse();
  if (index.status().code() == StatusCode::kCorruption)
    return InvalidArgument("moments " + source.shown_as +
                           ": not a well-formed safetensors file: " + std::string(index.status().message()));
  RETURN_IF_ERROR(index.status());
  for (TensorEntry& entry : index->tensors) {
    std::string name = entry.name;
    file.entries_.emplace(std::move(name), std::move(entry));
  }
  return file;
}

Result<bool> MomentsFile::Has(const std::string& name, const std::vector<uint64_t>& shape) const {
  const auto entry = entries_.find(name);
  if (entry == entries_.end()) return false;
  if (entry->second.dtype == DType::kF32 && entry->second.shape == shape) return true;
  return InvalidArgument("moments " + source_->shown_as + ": '" + name + "' is " +
                         std::string(DTypeName(entry->second.dtype)) + " " + ShapeText(entry->second.shape) +
                         ", this model needs F32 " + ShapeText(shape) + ": they are those of another model");
}

Result<bool> MomentsFile::HasMoments(const std::string& name, uint64_t columns) const {
  return Has(name, {columns, columns});
}

Result<bool> MomentsFile::HasTransposed(const std::string& name, uint64_t rows) const {
  return Has(TransposedName(name), {rows, rows});
}

Result<bool> MomentsFile::HasRows(const std::string& name, uint64_t rows) const {
  return Has(RowsName(name), {rows, 2});
}

Result<Hash128> MomentsFile::HashOf(const std::string& name) const {
  const TensorEntry& entry = entries_.at(name);
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*source_));
  Hasher128 hasher;
  Bytes window(std::min(kReadBytes, entry.end - entry.begin));
  for (uint64_t at = entry.begin; at < entry.end; at += window.size()) {
    const MutableByteSpan part = MutableByteSpan(window).first(std::min<uint64_t>(window.size(), entry.end - at));
    RETURN_IF_ERROR(reader.ReadAt(at, part));
    hasher.Update(part);
  }
  return hasher.Finish();
}

Status MomentsFile::Read(const std::string& name, std::vector<float>* out) const {
  const TensorEntry& entry = entries_.at(name);
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*source_));
  out->resize((entry.end - entry.begin) / sizeof(float));
  return reader.ReadAt(entry.begin, std::as_writable_bytes(std::span(*out)));
}

Status MomentsFile::Load(const std::string& name, std::vector<float>* out) const { return Read(name, out); }

Status MomentsFile::CheckMean(const std::string& name, uint64_t columns) const {
  const std::string mean = MeanName(name);
  ASSIGN_OR_RETURN(const bool present, Has(mean, {columns}));
  if (!present)
    return InvalidArgument("moments " + source_->shown_as + ": no '" + mean +
                           "' in them: they are those of another model, or were made without it");
  return OkStatus();
}

Status MomentsFile::LoadMean(const std::string& name, uint64_t columns, std::vector<float>* out) const {
  RETURN_IF_ERROR(CheckMean(name, columns));
  return Read(MeanName(name), out);
}

Result<double> MomentsFile::Influence(const std::string& block) const {
  const std::string name = block + ".influence";
  ASSIGN_OR_RETURN(const bool present, Has(name, {}));
  if (!present)
    return InvalidArgument("moments " + source_->shown_as + ": no '" + name +
                           "' in them: they are those of another model, or were made without it");
  std::vector<float> value;
  RETURN_IF_ERROR(Read(name, &value));
  if (!std::isfinite(value[0]))
    return InvalidArgument("moments " + source_->shown_as + ": '" + name + "' is no finite number");
  return value[0];
}

// Column 0: how often a token is an input; column 1: the mean of p(1 - p), p being its probability as the output. A row
// of the embedding counts by the first, one of the head by the second, of a tensor that is both by their sum.
Status MomentsFile::LoadRowWeights(const std::string& name, std::vector<float>* out) const {
  std::vector<float> both;
  RETURN_IF_ERROR(Read(RowsName(name), &both));
  const size_t rows = both.size() / 2;
  double sums[2] = {0, 0};
  for (size_t i = 0; i < both.size(); ++i) {
    if (!std::isfinite(both[i]) || both[i] < 0)
      return InvalidArgument("moments " + source_->shown_as + ": '" + RowsName(name) + "' has a value of " +
                             std::to_string(both[i]) + "; finite ones from 0 on are expected");
    sums[i % 2] += both[i];
  }
  const bool is_head = entries_.contains(name);
  out->resize(rows);
  for (size_t row = 0; row < rows; ++row) {
    const double seen = sums[0] > 0 ? both[2 * row] / sums[0] : 0;
    const double spread = is_head && sums[1] > 0 ? both[2 * row + 1] / sums[1] : 0;
    (*out)[row] = static_cast<float>(seen + spread + 1e-7);
  }
  return OkStatus();
}

}  // namespace modelstore
