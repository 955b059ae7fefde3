// How numbers, names and tables look to a person (layer: cli). Pure functions; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

// What the stream that is written to can show.
struct Style {
  bool color = false;
  bool unicode = false;
  unsigned width = 80;  // columns
};

enum class Tone : uint8_t { kPlain, kBold, kDim, kGood, kWarn, kBad };
// `text` in the tone's colour; unchanged without colours.
std::string Painted(std::string_view text, Tone tone, const Style& style);

std::string HumanBytes(uint64_t bytes);                            // "269.1 MB": decimal, one digit after the point
std::string ExactBytes(uint64_t bytes);                            // "269,060,552"
std::string Percent(double fraction);                              // "10.7 %"
std::string Ratio(uint64_t logical_bytes, uint64_t stored_bytes);  // "2.4x"; "-" when either is 0
std::string DriftText(double drift);                               // "0.0123"
std::string HumanSeconds(double seconds);                          // "1.2 s", "3 min 05 s"
std::string Clock(double seconds);                                 // "0:03", "1:02:03"
std::string Plural(uint64_t count, std::string_view noun);         // "1 file", "2 files"
std::string ShapeText(const std::vector<uint64_t>& shape);         // "49152 x 576"; "scalar" for rank 0

// `text` with nothing in it that a terminal obeys: control characters, bidirectional overrides and invalid UTF-8 become
// visible escapes ("\x1b", "\u202e"). Names in a store may come from anyone.
std::string Printable(std::string_view text);
// Columns that UTF-8 text takes on a terminal (wide characters 2, combining marks 0).
size_t DisplayWidth(std::string_view text);

// Whole number in [low, high]. Errors: InvalidArgument.
Result<uint64_t> ParseCount(std::string_view text, uint64_t low, uint64_t high);
// The name that a path gives a model: its last component as typed; `resolved` (the real path) decides for ".", ".." and
// "/". "" when there is none.
std::string DefaultModelName(std::string_view path, std::string_view resolved);

struct Cell {
  std::string text;  // Printable already
  Tone tone = Tone::kPlain;
};

// Rows under aligned headings.
class Table {
 public:
  enum class Align : uint8_t { kLeft, kRight };
  struct Column {
    std::string heading;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void Row(std::vector<Cell> cells);  // as many as there are columns
  std::string Render(const Style& style) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
};

}  // namespace modelstore
