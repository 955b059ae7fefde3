// A streaming (SAX) parse: a hostile header of 100 MB costs its tensors' entries and never a JSON tree, and nesting is
// bounded by the grammar itself: an object or array is refused wherever the format has none, and counted in a field
// that it does not know.
#include "codec/tensor/safetensors.h"

#include <algorithm>
#include <exception>
#include <new>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>
#include <tuple>
#include <utility>

#include "codec/support/hash.h"

namespace modelstore {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr size_t kMaxNameBytes = 65535;
constexpr size_t kMaxRank = 64;
constexpr size_t kMaxTokenBytes = 16u << 20;
constexpr size_t kMaxShownBytes = 96;
constexpr std::string_view kBlanks = " \t\r\n";
constexpr size_t kMaxOtherLevels = 125;  // as serde_json, which the reference implementation is made with

// For messages: printable ASCII stays, everything else (terminal escapes, newlines, non-ASCII) becomes \xNN.
std::string Quoted(std::string_view s) {
  std::string out = "\"";
  for (const char c : s.substr(0, kMaxShownBytes)) {
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
      out.push_back(c);
    } else {
      out += "\\x" + ToHex(AsBytes({&c, 1}));
    }
  }
  return out + (s.size() > kMaxShownBytes ? "\"…" : "\"");
}

Status BadHeader(std::string detail) { return Corruption("safetensors header: " + std::move(detail)); }
Status BadTensor(std::string_view name, std::string_view detail) {
  return BadHeader("tensor " + Quoted(name) + ": " + std::string(detail));
}

bool Multiply(uint64_t a, uint64_t b, uint64_t* product) { return !__builtin_mul_overflow(a, b, product); }

// The lexer keeps a token three times over while it reports it: no string, number or word may be huge.
bool TokensAreShort(std::string_view json) {
  bool in_string = false;
  size_t token_bytes = 0;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
      token_bytes = 0;
    } else if (std::string_view("{}[]:, \n\r\t").find(c) != std::string_view::npos) {
      token_bytes = 0;
    }
    if (++token_bytes > kMaxTokenBytes) return false;
  }
  return true;
}

// Receives nlohmann's events; the first broken rule ends the parse and stays in status().
class HeaderSax {
 public:
  explicit HeaderSax(uint64_t json_bytes) : json_bytes_(json_bytes) {}

  const Status& status() const { return status_; }
  // In the header's order, with offsets in the data section.
  std::vector<TensorEntry> TakeTensors() { return std::move(tensors_); }

  bool null() { return IsPassedOver() || (place_ == Place::kRoot && key_is_metadata_) || Unexpected("null"); }
  bool boolean(bool) { return IsPassedOver() || Unexpected("a boolean"); }
  bool number_integer(int64_t value) {
    return IsPassedOver() || Unexpected("the negative number " + std::to_string(value));
  }
  bool number_float(double, const std::string&) {
    return IsPassedOver() || Unexpected("a fraction or a number beyond 2^64 - 1");
  }
  bool binary(std::vector<uint8_t>&) { return Unexpected("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (IsPassedOver()) return true;
    if (place_ == Place::kShape) {
      if (entry_.shape.size() < kMaxRank) {
        entry_.shape.push_back(value);
        return true;
      }
      return Multiply(entry_.shape.back(), value, &entry_.shape.back()) ||
             FailTensor("the product of the shape overflows 64 bits");
    }
    if (place_ == Place::kOffsets) {
      if (offset_count_ == 2) return FailTensor("data_offsets has more than two numbers");
      offsets_[offset_count_++] = value;
      return true;
    }
    return Unexpected("the number " + std::to_string(value));
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata || IsPassedOver()) return true;
    if (place_ == Place::kTensor && field_ == Field::kDType) {
      entry_.dtype = DTypeFromName(value);
      return true;
    }
    return Unexpected("the string " + Quoted(value));
  }

  bool start_object(size_t) {
    if (IsPassedOver()) return PassOver();
    if (place_ == Place::kTop) {
      place_ = Place::kRoot;
      return true;
    }
    if (place_ != Place::kRoot) return Unexpected("an object");
    if (key_is_metadata_) {
      place_ = Place::kMetadata;
      return true;
    }
    place_ = Place::kTensor;
    field_ = Field::kNone;
    seen_ = 0;
    offset_count_ = 0;
    return true;
  }

  bool key(std::string& key) {
    switch (place_) {
      case Place::kRoot:
        return RootKey(key);
      case Place::kMetadata:
      case Place::kOther:
        return true;
      default:
        return TensorKey(key);
    }
  }

  bool end_object() {
    if (place_ == Place::kOther) return EndOther();
    if (place_ == Place::kRoot) {
      place_ = Place::kTop;
      return true;
    }
    if (place_ == Place::kTensor && !FinishTensor()) return false;
    place_ = Place::kRoot;
    return true;
  }

  bool start_array(size_t) {
    if (IsPassedOver()) return PassOver();
    if (place_ == Place::kTensor && field_ == Field::kShape) {
      place_ = Place::kShape;
      return true;
    }
    if (place_ == Place::kTensor && field_ == Field::kOffsets) {
      place_ = Place::kOffsets;
      return true;
    }
    return Unexpected("an array");
  }

  bool end_array() {
    if (place_ == Place::kOther) return EndOther();
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
    return Fail(BadHeader("not JSON at byte " + std::to_string(position) + " of " + std::to_string(json_bytes_)));
  }

 private:
  // kOther: inside a field of a tensor that the format does not know, `other_levels_` deep.
  enum class Place { kTop, kRoot, kMetadata, kTensor, kShape, kOffsets, kOther };
  enum class Field : unsigned { kNone = 0, kDType = 1, kShape = 2, kOffsets = 4, kOther = 8 };
  static constexpr unsigned kAllFields = 7;

  bool Fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
    return false;
  }
  bool FailTensor(std::string_view detail) { return Fail(BadTensor(entry_.name, detail)); }

  // Whatever a field that the format does not know has is nothing to us, nor to the reference implementation.
  bool IsPassedOver() const { return place_ == Place::kOther || (place_ == Place::kTensor && field_ == Field::kOther); }
  bool PassOver() {
    place_ = Place::kOther;
    return ++other_levels_ <= kMaxOtherLevels || FailTensor("a field is nested too deeply");
  }
  bool EndOther() {
    if (--other_levels_ == 0) place_ = Place::kTensor;
    return true;
  }

  bool Unexpected(const std::string& found) {
    switch (place_) {
      case Place::kTop:
        return Fail(BadHeader("expected an object, found " + found));
      case Place::kMetadata:
        return Fail(BadHeader("__metadata__ must hold only strings, found " + found));
      case Place::kRoot:
        if (key_is_metadata_) return Fail(BadHeader("__metadata__ must be an object, found " + found));
        return FailTensor("expected an object, found " + found);
      case Place::kShape:
        return FailTensor("shape must hold non-negative integers, found " + found);
      case Place::kOffsets:
        return FailTensor("data_offsets must hold non-negative integers, found " + found);
      case Place::kTensor:
        if (field_ == Field::kDType) return FailTensor("dtype must be a string, found " + found);
        if (field_ == Field::kShape) return FailTensor("shape must be an array, found " + found);
        return FailTensor("data_offsets must be an array, found " + found);
      case Place::kOther:
        break;
    }
    return false;
  }

  bool RootKey(std::string& key) {
    key_is_metadata_ = key == kMetadataKey;
    if (key_is_metadata_) {
      if (std::exchange(has_metadata_, true)) return Fail(BadHeader("__metadata__ appears twice"));
      return true;
    }
    entry_ = {};
    entry_.name = std::move(key);
    if (entry_.name.find('\0') != std::string::npos) return FailTensor("the name holds a NUL");
    if (entry_.name.size() > kMaxNameBytes) return FailTensor("the name is longer than 65535 bytes");
    return true;
  }

  bool TensorKey(const std::string& key) {
    field_ = key == "dtype"          ? Field::kDType
             : key == "shape"        ? Field::kShape
             : key == "data_offsets" ? Field::kOffsets
                                     : Field::kOther;
    if (field_ == Field::kOther) return true;
    const auto bit = static_cast<unsigned>(field_);
    if (seen_ & bit) return FailTensor(key + " appears twice");
    seen_ |= bit;
    return true;
  }

  bool FinishTensor() {
    if (seen_ != kAllFields) return FailTensor("dtype, shape and data_offsets must all be present");
    if (offset_count_ != 2) return FailTensor("data_offsets must be two numbers");
    std::tie(entry_.begin, entry_.end) = std::pair(offsets_[0], offsets_[1]);
    tensors_.push_back(std::move(entry_));
    return true;
  }

  const uint64_t json_bytes_;
  Place place_ = Place::kTop;
  Field field_ = Field::kNone;
  unsigned seen_ = 0;
  bool key_is_metadata_ = false;
  bool has_metadata_ = false;
  TensorEntry entry_;
  uint64_t offsets_[2] = {0, 0};
  unsigned offset_count_ = 0;
  size_t other_levels_ = 0;
  std::vector<TensorEntry> tensors_;
  Status status_;
};

// Of several tensors of one name the last counts, as it does for the reference implementation.
void DropRepeatedNames(std::vector<TensorEntry>& tensors) {
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return tensors[a].name != tensors[b].name ? tensors[a].name < tensors[b].name : a < b;
  });
  std::vector<bool> is_repeated(tensors.size());
  for (size_t i = 1; i < order.size(); ++i)
    is_repeated[order[i - 1]] = tensors[order[i - 1]].name == tensors[order[i]].name;
  size_t left = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (is_repeated[i]) continue;
    if (left != i) tensors[left] = std::move(tensors[i]);
    ++left;
  }
  tensors.resize(left);
}

// A tensor as the header has it becomes one with offsets in the file. Errors: Corruption.
Status PlaceTensor(TensorEntry& tensor, uint64_t header_bytes, uint64_t file_bytes) {
  const uint64_t data_bytes = file_bytes - header_bytes;
  const uint64_t bytes = tensor.end - tensor.begin;
  if (tensor.begin > tensor.end || tensor.end > data_bytes)
    return BadTensor(tensor.name, "data_offsets [" + std::to_string(tensor.begin) + ", " + std::to_string(tensor.end) +
                                      ") lie outside the data section of " + std::to_string(data_bytes) + " bytes");
  uint64_t elems = 1;
  for (const uint64_t dim : tensor.shape) {
    if (!Multiply(elems, dim, &elems)) return BadTensor(tensor.name, "the product of the shape overflows 64 bits");
  }
  if (tensor.dtype == DType::kOpaque) {
    tensor.shape = {bytes};
  } else {
    uint64_t needed = 0;
    if (!Multiply(elems, DTypeBytes(tensor.dtype), &needed))
      return BadTensor(tensor.name, "its size overflows 64 bits");
    if (needed != bytes)
      return BadTensor(tensor.name, "shape and dtype need " + std::to_string(needed) + " bytes, data_offsets give " +
                                        std::to_string(bytes));
  }
  tensor.begin += header_bytes;
  tensor.end += header_bytes;
  return OkStatus();
}

Status SortAndCheckOverlap(std::vector<TensorEntry>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  for (size_t i = 1; i < tensors.size(); ++i)
    if (tensors[i].begin < tensors[i - 1].end)
      return BadTensor(tensors[i].name, "its data overlaps that of tensor " + Quoted(tensors[i - 1].name));
  return OkStatus();
}

Result<TensorIndex> Parse(std::string_view json, uint64_t header_bytes, uint64_t file_bytes) {
  HeaderSax sax(json.size());
  const bool parsed = nlohmann::json::sax_parse(json.begin(), json.end(), &sax);
  RETURN_IF_ERROR(sax.status());
  if (!parsed) return BadHeader("not JSON");
  TensorIndex index{header_bytes, sax.TakeTensors()};
  DropRepeatedNames(index.tensors);
  for (TensorEntry& tensor : index.tensors) RETURN_IF_ERROR(PlaceTensor(tensor, header_bytes, file_bytes));
  RETURN_IF_ERROR(SortAndCheckOverlap(index.tensors));
  return index;
}

}  // namespace

Result<uint64_t> SafetensorsHeaderBytes(ByteSpan first_bytes, uint64_t file_bytes) {
  ByteReader reader(first_bytes);
  const uint64_t json_bytes = reader.U64();
  if (!reader.ok() || file_bytes < kSafetensorsLengthBytes) {
    return BadHeader("the file has " + std::to_string(file_bytes) + " bytes, too few for the 8 bytes of its length");
  }
  if (json_bytes > kSafetensorsMaxHeaderBytes) {
    return BadHeader("its length of " + std::to_string(json_bytes) + " bytes exceeds the format's limit of " +
                     std::to_string(kSafetensorsMaxHeaderBytes));
  }
  if (json_bytes > file_bytes - kSafetensorsLengthBytes) {
    return BadHeader("its length of " + std::to_string(json_bytes) + " bytes exceeds the file of " +
                     std::to_string(file_bytes) + " bytes");
  }
  return kSafetensorsLengthBytes + json_bytes;
}

bool MayBeSafetensors(ByteSpan first_bytes, uint64_t file_bytes) {
  if (first_bytes.size() < kSafetensorsProbeBytes || !SafetensorsHeaderBytes(first_bytes, file_bytes).ok())
    return false;
  const char first = AsChars(first_bytes)[kSafetensorsLengthBytes];
  return first == '{' || kBlanks.find(first) != std::string_view::npos;
}

Result<Bytes> LoadSafetensorsHeader(uint64_t file_bytes, const std::function<Status(MutableByteSpan)>& read) {
  Bytes header(std::min(file_bytes, kSafetensorsLengthBytes));
  RETURN_IF_ERROR(read(header));
  ASSIGN_OR_RETURN(const uint64_t header_bytes, SafetensorsHeaderBytes(header, file_bytes));
  header.resize(header_bytes);
  RETURN_IF_ERROR(read(header));
  return header;
}

Result<TensorIndex> ParseSafetensorsHeader(ByteSpan header, uint64_t file_bytes) {
  ASSIGN_OR_RETURN(const uint64_t header_bytes, SafetensorsHeaderBytes(header, file_bytes));
  if (header.size() != header_bytes) {
    return BadHeader("expected " + std::to_string(header_bytes) + " bytes, got " + std::to_string(header.size()));
  }
  const std::string_view json = AsChars(header.subspan(kSafetensorsLengthBytes));
  const size_t begin = json.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos || json[begin] != '{') return BadHeader("does not begin with '{'");
  // The JSON lexer takes a NUL for the end of its input; what follows one would go unread.
  if (json.find('\0') != std::string_view::npos) return BadHeader("holds a NUL byte");
  if (!TokensAreShort(json)) return BadHeader("holds a string or number of more than 16 MiB");
  try {
    return Parse(json, header_bytes, file_bytes);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("safetensors header: no memory for a header of " + std::to_string(header_bytes) +
                             " bytes");
  } catch (const std::exception& e) {
    return BadHeader(std::string("not JSON: ") + e.what());
  }
}

}  // namespace modelstore
