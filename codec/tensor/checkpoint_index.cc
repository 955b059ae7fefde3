#include "codec/tensor/checkpoint_index.h"

#include <nlohmann/json.hpp>

namespace modelstore {
namespace {

Status BadIndex(const std::string& why) { return Corruption("the index " + why); }

// Receives nlohmann's events: strings of the object weight_map in the outermost one.
class IndexSax {
 public:
  const Status& status() const { return status_; }
  bool has_map() const { return has_map_; }
  std::set<std::string> TakeFiles() { return std::move(files_); }

  bool null() { return Value(); }
  bool boolean(bool) { return Value(); }
  bool number_integer(int64_t) { return Value(); }
  bool number_unsigned(uint64_t) { return Value(); }
  bool number_float(double, const std::string&) { return Value(); }
  bool binary(std::vector<uint8_t>&) { return Value(); }
  bool string(std::string& value) {
    if (!IsFile()) return Value();
    files_.insert(std::move(value));
    return true;
  }
  bool key(std::string& key) {
    if (levels_ == 1) is_map_ = key == "weight_map";
    return true;
  }
  bool start_object(size_t) {
    if (levels_ == 0) is_object_ = true;
    if (levels_ == 1 && is_map_) {
      has_map_ = true;
      ++levels_;
      return true;
    }
    return Start();
  }
  bool start_array(size_t) { return Start(); }
  bool end_object() { return --levels_, true; }
  bool end_array() { return --levels_, true; }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
    return Fail("is no JSON: it breaks off or goes wrong at byte " + std::to_string(position));
  }

 private:
  bool IsFile() const { return levels_ == 2 && is_map_; }
  bool Start() { return Value() && (++levels_, true); }
  bool Value() {
    if (IsFile()) return Fail("names a file by what is no string");
    return levels_ > 0 || is_object_ || Fail("is no JSON object");
  }
  bool Fail(const std::string& why) {
    if (status_.ok()) status_ = BadIndex(why);
    return false;
  }

  size_t levels_ = 0;
  bool is_object_ = false, is_map_ = false, has_map_ = false;
  std::set<std::string> files_;
  Status status_;
};

}  // namespace

Result<std::set<std::string>> IndexedFiles(ByteSpan index) {
  IndexSax sax;
  const std::string_view json = AsChars(index);
  const bool parsed = nlohmann::json::sax_parse(json.begin(), json.end(), &sax);
  RETURN_IF_ERROR(sax.status());
  if (!parsed) return BadIndex("is no JSON");
  if (!sax.has_map()) return BadIndex("has no weight_map");
  return sax.TakeFiles();
}

}  // namespace modelstore
