#include "catalog/derive/layer_mentions.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <charconv>
#include <set>

namespace modelstore {
namespace {

// What stacks of layers are called in names of modules, longer words first.
constexpr std::string_view kStackWords[] = {"layers", "blocks", "layer", "block", "h"};
// Parts of names that come and go around the same stack, by how a program wraps the model.
constexpr std::string_view kWrappers[] = {"model",  "base_model", "language_model", "transformer", "text_model",
                                          "module", "thinker",    "backbone",       "_orig_mod",   "llm"};
constexpr std::string_view kOtherModels[] = {"vision",    "visual",  "audio",     "image", "speech", "video", "talker",
                                             "projector", "qformer", "perceiver", "mtp",   "nextn",  "draft", "wav"};
// A layer's number has at most so many digits (layer_names.cc).
constexpr size_t kMaxDigits = 5;
// Of a group in a pattern so much is looked at, so that no pattern takes long.
constexpr size_t kMaxGroup = 1024;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameChar(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-';
}
// GPTQModel has regular expressions of modules to quantize in another way, and of those to leave.
bool IsSigned(std::string_view text) { return text.starts_with("+:") || text.starts_with("-:"); }
bool IsPattern(std::string_view text) {
  return text.starts_with("re:") || IsSigned(text) || text.find_first_of("\\*[]()|^$+?{}") != std::string_view::npos;
}
// With * alone a pattern may be one of file names, which has no groups.
bool IsRegex(std::string_view text) {
  return text.starts_with("re:") || IsSigned(text) || text.find_first_of("\\(|^$") != std::string_view::npos;
}

// The length of a dot at the beginning of `text`, as a pattern may write it; 0 for none.
size_t DotAt(std::string_view text) {
  for (const std::string_view dot : {std::string_view("\\."), std::string_view("[.]"), std::string_view(".")}) {
    if (text.starts_with(dot)) return dot.size();
  }
  return 0;
}
bool IsRepeat(std::string_view text) { return !text.empty() && (text[0] == '*' || text[0] == '+' || text[0] == '?'); }
// Whether an unescaped dot, or a star alone, stands for anything here.
bool IsWildcard(std::string_view text) {
  return text.starts_with('*') || (text.starts_with('.') && IsRepeat(text.substr(1)));
}

// The number in a pattern: alternatives of sequences of digits and classes of digits. Matching goes through all
// positions of a text at once, so that no pattern takes long.
class NumberPattern {
 public:
  // The number at the beginning of `text`; nullopt when it is of another form.
  static std::optional<NumberPattern> Parse(std::string_view text) {
    NumberPattern pattern;
    std::string_view rest = text;
    const bool is_group = rest.starts_with('(');
    if (is_group) rest.remove_prefix(rest.starts_with("(?:") ? 3 : 1);
    pattern.alternatives_.emplace_back();
    while (!rest.empty()) {
      if (is_group && rest[0] == '|') {
        pattern.alternatives_.emplace_back();
        rest.remove_prefix(1);
      } else if (is_group && rest[0] == ')') {
        rest.remove_prefix(1);
        // A group that repeats is of another form.
        if (IsRepeat(rest) || rest.starts_with('{')) return std::nullopt;
        return pattern.Finish(text, rest);
      } else if (!pattern.TakeAtom(&rest)) {
        return is_group ? std::nullopt : pattern.Finish(text, rest);
      }
    }
    return is_group ? std::nullopt : pattern.Finish(text, rest);
  }

  size_t size() const { return size_; }
  // `and_more`: whether it matches the beginning of the number.
  bool Matches(uint32_t number, bool and_more) const {
    const std::string digits = std::to_string(number);
    return std::ranges::any_of(alternatives_, [&](const auto& atoms) {
      std::bitset<kMaxDigits + 1> at(1);
      for (const Atom& atom : atoms) {
        std::bitset<kMaxDigits + 1> after;
        for (size_t i = 0; i <= digits.size(); ++i) {
          if (!at[i]) continue;
          if (atom.may_lack) after.set(i);
          for (size_t end = i; end < digits.size() && atom.digits[static_cast<size_t>(digits[end] - '0')]; ++end) {
            after.set(end + 1);
            if (!atom.may_repeat) break;
          }
        }
        at = after;
      }
      return and_more ? at.any() : at[digits.size()];
    });
  }

 private:
  struct Atom {
    std::bitset<10> digits;
    bool may_lack = false, may_repeat = false;
  };

  std::optional<NumberPattern> Finish(std::string_view text, std::string_view rest) {
    size_ = text.size() - rest.size();
    const bool has_empty = std::ranges::any_of(alternatives_, [](const auto& atoms) { return atoms.empty(); });
    return has_empty ? std::nullopt : std::optional(*this);
  }

  bool TakeAtom(std::string_view* text) {
    Atom atom;
    std::string_view rest = *text;
    if (rest.empty()) return false;
    if (IsDigit(rest[0])) {
      atom.digits.set(static_cast<size_t>(rest[0] - '0'));
      rest.remove_prefix(1);
    } else if (rest.starts_with("\\d") || rest.starts_with("\\w")) {
      atom.digits.set();
      rest.remove_prefix(2);
    } else if (!TakeClass(&rest, &atom.digits)) {
      return false;
    }
    if (IsRepeat(rest) && !IsDigit((*text)[0])) {
      atom.may_lack = rest[0] != '+';
      atom.may_repeat = rest[0] != '?';
      rest.remove_prefix(1);
    }
    alternatives_.back().push_back(atom);
    *text = rest;
    return true;
  }

  // [0-35], [^.] and the like.
  bool TakeClass(std::string_view* text, std::bitset<10>* digits) {
    if (!text->starts_with('[')) return false;
    const size_t end = text->find(']', 1);
    if (end == std::string_view::npos) return false;
    const std::string_view inside = text->substr(1, end - 1);
    if (inside.starts_with('^')) {
      // Whatever is excluded besides digits is no part of a number.
      digits->set();
      for (const char c : inside.substr(1)) {
        if (IsDigit(c)) return false;
      }
    } else {
      for (size_t i = 0; i < inside.size(); ++i) {
        if (!IsDigit(inside[i])) return false;
        const bool is_range = i + 2 < inside.size() && inside[i + 1] == '-';
        const char last = is_range ? inside[i + 2] : inside[i];
        if (!IsDigit(last)) return false;
        for (char c = inside[i]; c <= last; ++c) digits->set(static_cast<size_t>(c - '0'));
        if (is_range) i += 2;
      }
      if (digits->none()) return false;
    }
    text->remove_prefix(end + 1);
    return true;
  }

  std::vector<std::vector<Atom>> alternatives_;
  size_t size_ = 0;
};

class Renumbering {
 public:
  Renumbering(std::string_view text, const LayerCut& cut, LayerMentions& mentions)
      : text_(text), cut_(cut), of_(mentions), is_pattern_(IsPattern(text)), tail_(TailOf(cut.scheme.before)) {}

  Result<std::optional<std::string>> Run() {
    std::string out;
    size_t copied = 0;
    for (size_t at = 0; at < text_.size();) {
      const std::optional<Place> place = PlaceAt(at);
      const std::optional<size_t> begin = place ? place->number : LoneNumberAt(at);
      if (!begin) {
        ++at;
        continue;
      }
      bool is_ours = !IsOfNamedStack(at);
      if (place) {
        ASSIGN_OR_RETURN(is_ours, IsOurs(*place));
        named_ = *begin;
      }
      at = *begin;
      if (!is_ours) {
        at += !place;
        continue;
      }
      ASSIGN_OR_RETURN(const Number number, Renumber(*begin));
      at += number.size;
      if (!place && of_.HasOtherNumbers()) {
        if (number.is_dropped || number.text != text_.substr(*begin, number.size))
          return Refuse("has a number that may be of a layer or of something else");
        continue;
      }
      ++mentions_;
      dropped_ += number.is_dropped;
      out += text_.substr(copied, *begin - copied);
      out += number.text;
      copied = at;
    }
    if (dropped_ > 0 && dropped_ < mentions_) return Refuse("names a layer that is dropped beside others");
    if (dropped_ > 0) return std::optional<std::string>();
    out += text_.substr(copied);
    return std::optional(std::move(out));
  }

 private:
  // Where a stack's word begins, what stands before it, and where a number begins.
  struct Place {
    std::string prefix;     // as in tensors' names, with the word: "model.layers."
    bool is_known = false;  // the word is the scheme's
    bool is_open = false;   // anything may stand before it
    size_t number = 0;
  };
  struct Number {
    size_t size = 0;
    std::string text;
    bool is_dropped = false;
  };

  // The last part of a scheme's beginning: "layers."
  static std::string_view TailOf(std::string_view before) {
    const size_t dot = before.size() < 2 ? std::string_view::npos : before.rfind('.', before.size() - 2);
    return dot == std::string_view::npos ? before : before.substr(dot + 1);
  }

  Status Refuse(const std::string& why) const {
    return Unsupported("'" + std::string(text_.substr(0, 200)) + "' " + why);
  }

  // The end of `word`, dots as a pattern writes them, when it stands at `at`; npos when it does not.
  size_t EndOfWord(std::string_view word, size_t at) const {
    for (const char c : word) {
      const std::string_view rest = text_.substr(at);
      const size_t length = c == '.' ? DotAt(rest) : rest.starts_with(c) ? 1 : 0;
      if (length == 0) return std::string_view::npos;
      at += length;
    }
    return at;
  }

  std::optional<Place> PlaceAt(size_t at) const {
    if (at > 0 && (IsNameChar(text_[at - 1]) || text_[at - 1] == '/')) return std::nullopt;
    Place place;
    std::string word(tail_);
    place.number = EndOfWord(word, at);
    place.is_known = place.number != std::string_view::npos;
    for (const std::string_view other : kStackWords) {
      if (place.number != std::string_view::npos) break;
      word = std::string(other) + ".";
      place.number = EndOfWord(word, at);
    }
    if (place.number == std::string_view::npos) return std::nullopt;
    // A dot that repeats, or what is for all layers.
    const std::string_view rest = text_.substr(place.number);
    if (is_pattern_ && (IsRepeat(rest) || IsWildcard(rest))) return std::nullopt;
    if (rest.empty() || !(IsDigit(rest[0]) || (is_pattern_ && (rest[0] == '(' || rest[0] == '[' || rest[0] == '\\'))))
      return std::nullopt;
    std::string before;
    while (at > 0) {
      const std::string_view left = text_.substr(0, at);
      if (left.ends_with("\\.") || left.ends_with("[.]")) {
        before.insert(before.begin(), '.');
        at -= left.ends_with("\\.") ? 2 : 3;
      } else if (IsNameChar(left.back()) || left.back() == '.') {
        before.insert(before.begin(), left.back());
        --at;
      } else {
        break;
      }
    }
    place.is_open = is_pattern_ && at > 0 && std::string_view("*+?)]}").find(text_[at - 1]) != std::string_view::npos;
    // What repeats, or is behind a group, is not the whole of a part of the name.
    if (place.is_open || before.starts_with('.')) before.erase(0, before.find('.') + 1);
    place.prefix = before + word;
    return place;
  }

  // Where a number begins that a pattern has behind anything, without a stack's word: ".*\.4\..*".
  std::optional<size_t> LoneNumberAt(size_t at) const {
    if (!is_pattern_) return std::nullopt;
    const std::string_view left = text_.substr(0, at), dot = text_.substr(at, DotAt(text_.substr(at)));
    const bool is_behind_any = !left.empty() && std::string_view("*+?)]}").find(left.back()) != std::string_view::npos;
    const bool is_behind_dots =
        dot.empty() && (left.ends_with("\\.)") || left.ends_with("[.])") || left.ends_with("|^)"));
    const bool is_alone = dot.size() > 1 ? left.empty() || !IsNameChar(left.back())
                          : dot.empty()  ? is_behind_dots
                                         : is_behind_any;
    const std::string_view rest = text_.substr(at + dot.size());
    if (!is_alone || !(BeginsWithNumber(rest) || IsGroupWithNumber(rest))) return std::nullopt;
    return at + dot.size();
  }

  // "4", "\d", "[4-6]"; not "[0-9a-z]", "3x3", which are of any name.
  static bool BeginsWithNumber(std::string_view rest) {
    if (rest.empty() || !(IsDigit(rest[0]) || rest[0] == '[' || rest.starts_with("\\d"))) return false;
    if (rest.starts_with("[^")) return false;
    const std::optional<NumberPattern> pattern = NumberPattern::Parse(rest);
    return pattern && (pattern->size() == rest.size() || !IsNameChar(rest[pattern->size()]));
  }

  // A group with a number as one of its alternatives, or one so long that nobody could tell.
  static bool IsGroupWithNumber(std::string_view rest) {
    size_t depth = 0;
    for (size_t i = 0; i < rest.size(); ++i) {
      if (i == kMaxGroup) return true;
      depth += rest[i] == '(';
      depth -= rest[i] == ')';
      if (depth == 0) return false;
      if (std::string_view("(|:!=").find(rest[i]) != std::string_view::npos && BeginsWithNumber(rest.substr(i + 1)))
        return true;
    }
    return false;
  }

  // Whether the pattern has named a stack before, or another model, so that a number alone is of what is inside it.
  bool IsOfNamedStack(size_t at) const {
    const std::string_view left = text_.substr(0, at);
    const size_t alternative = left.rfind('|') + 1;
    return named_ > alternative || IsOfOtherModel(left.substr(alternative));
  }

  Result<bool> IsOurs(const Place& place) {
    const std::string& before = cut_.scheme.before;
    const bool is_suffix = before == place.prefix || before.ends_with("." + place.prefix);
    const bool has_other = of_.IsOtherStack(place.prefix);
    if (place.is_known && is_suffix) {
      // "layers.3" alone, or behind anything, is of every stack that is called so.
      if (has_other && (before != place.prefix || place.is_open))
        return Refuse("may name layers of more than one stack");
      return true;
    }
    if (has_other || IsOfOtherModel(place.prefix)) return false;
    if (!place.is_known) return Refuse("names a layer in another way than tensors do, as '" + before + "'");
    for (size_t at = 0; at + tail_.size() < place.prefix.size();) {
      const size_t end = place.prefix.find('.', at);
      const std::string part = place.prefix.substr(at, end - at);
      const bool is_wrapper = std::ranges::find(kWrappers, part) != std::end(kWrappers);
      if (!is_wrapper && ("." + before).find("." + part + ".") == std::string::npos)
        return Refuse("names a layer of a stack that no tensor is of");
      at = end + 1;
    }
    return true;
  }

  Result<Number> Renumber(size_t begin) const {
    const std::string_view rest = text_.substr(begin);
    return is_pattern_ ? RenumberPattern(rest) : RenumberName(rest);
  }

  Result<Number> RenumberName(std::string_view rest) const {
    Number number;
    uint32_t layer = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
    number.size = static_cast<size_t>(end - rest.data());
    number.text = std::string(rest.substr(0, number.size));
    const bool ends = number.size == rest.size() || !IsNameChar(rest[number.size]);
    // A number that there is no layer of names none in the variant either.
    if (!ends || error != std::errc() || layer >= cut_.layers || (number.size > 1 && rest[0] == '0')) return number;
    const std::optional<uint32_t> renumbered = cut_.NumberOf(layer);
    number.is_dropped = !renumbered;
    if (renumbered) number.text = std::to_string(*renumbered);
    return number;
  }

  Result<Number> RenumberPattern(std::string_view rest) const {
    const std::optional<NumberPattern> pattern = NumberPattern::Parse(rest);
    if (!pattern) return Refuse("names layers in a way that cannot be renumbered");
    Number number;
    number.size = pattern->size();
    number.text = std::string(rest.substr(0, number.size));
    const std::string_view behind = rest.substr(number.size);
    const bool ends =
        behind.empty() || DotAt(behind) > 0 || std::string_view("$)|,").find(behind[0]) != std::string_view::npos;
    // A star is anything but in a regular expression, where it repeats the digit before it.
    if (!ends && (IsRegex(text_) || !IsWildcard(behind)))
      return Refuse("names layers in a way that cannot be renumbered");
    // "3.*" may be for 30, too.
    const bool and_more = IsWildcard(behind) && HasLonger(*pattern);
    std::vector<uint32_t> after;
    bool stays = true, has_any = false;
    for (uint32_t layer = 0; layer < cut_.layers; ++layer) {
      const bool is_meant = pattern->Matches(layer, and_more);
      has_any |= is_meant;
      const std::optional<uint32_t> renumbered = cut_.NumberOf(layer);
      if (!renumbered) continue;
      if (is_meant) after.push_back(*renumbered);
      stays &= is_meant == pattern->Matches(*renumbered, and_more);
    }
    if (stays && (!after.empty() || !has_any)) return number;
    number.is_dropped = after.empty();
    if (after.empty()) return number;
    const std::string first = std::to_string(after[0]);
    bool is_beginning = false;
    for (uint32_t other = after[0] + 1; other < cut_.kept.size(); ++other)
      is_beginning |= std::to_string(other).starts_with(first);
    if (after.size() == 1 && !(IsWildcard(behind) && is_beginning)) {
      number.text = first;
      return number;
    }
    if (!IsRegex(text_)) return Refuse("names layers in a way that cannot be renumbered");
    number.text = "(?:";
    for (size_t i = 0; i < after.size(); ++i) number.text += (i == 0 ? "" : "|") + std::to_string(after[i]);
    number.text += IsWildcard(behind) ? ")(?![0-9])" : ")";
    return number;
  }

  bool HasLonger(const NumberPattern& pattern) const {
    for (uint32_t layer = 0; layer < cut_.layers; ++layer) {
      if (pattern.Matches(layer, true) != pattern.Matches(layer, false)) return true;
    }
    return false;
  }

  const std::string_view text_;
  const LayerCut& cut_;
  LayerMentions& of_;
  const bool is_pattern_;
  const std::string_view tail_;
  size_t mentions_ = 0, dropped_ = 0;
  size_t named_ = 0;  // where the last number behind a stack's word begins
};

}  // namespace

bool IsOfOtherModel(std::string_view name) {
  return std::ranges::any_of(kOtherModels,
                             [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
}

std::optional<uint32_t> LayerCut::NumberOf(uint64_t layer) const {
  const auto at = std::ranges::lower_bound(kept, layer);
  if (at == kept.end() || *at != layer) return std::nullopt;
  return static_cast<uint32_t>(at - kept.begin());
}

Result<std::optional<std::string>> LayerMentions::Renumber(std::string_view text) {
  return Renumbering(text, *cut_, *this).Run();
}

bool LayerMentions::HasOtherNumbers() {
  if (has_other_numbers_) return *has_other_numbers_;
  has_other_numbers_ = std::ranges::any_of(cut_->tensors, [&](std::string_view name) {
    if (name.starts_with(kAdapterPrefix)) name.remove_prefix(kAdapterPrefix.size());
    if (const auto place = cut_->scheme.Find(name)) name = place->rest;
    while (!name.empty()) {
      const std::string_view part = name.substr(0, name.find('.'));
      if (!part.empty() && std::ranges::all_of(part, IsDigit)) return true;
      name.remove_prefix(std::min(name.size(), part.size() + 1));
    }
    return false;
  });
  return *has_other_numbers_;
}

bool LayerMentions::IsOtherStack(const std::string& prefix) {
  const auto [answer, is_new] = other_stacks_.try_emplace(prefix, false);
  if (!is_new) return answer->second;
  answer->second = std::ranges::any_of(cut_->tensors, [&](std::string_view name) {
    if (name.starts_with(kAdapterPrefix)) name.remove_prefix(kAdapterPrefix.size());
    if (name.starts_with(cut_->scheme.before)) return false;
    size_t at = name.starts_with(prefix) ? 0 : name.find("." + prefix);
    if (at == std::string_view::npos) return false;
    at += prefix.size() + (name.starts_with(prefix) ? 0 : 1);
    return at < name.size() && IsDigit(name[at]);
  });
  return answer->second;
}

}  // namespace modelstore
