// What a command is: its words on the command line and its function (layer: cli). commands.h lists them all.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

class Session;

// The words given to a command. Options are looked up by their full name ("--base").
struct Arguments {
  std::map<std::string, std::string, std::less<>> values;
  std::set<std::string, std::less<>> flags;
  std::vector<std::string> positionals;

  bool Has(std::string_view flag) const { return flags.contains(flag); }
  std::string Value(std::string_view option, std::string fallback = "") const {
    const auto it = values.find(option);
    return it == values.end() ? fallback : it->second;
  }
};

// What a command leaves to print once the store is closed.
struct Outcome {
  std::string document;  // JSON, for --json
  std::string text;      // for people; ends with a line end unless empty
  int exit_code = 0;
};

struct PositionalSpec {
  std::string_view name;  // "NAME"
  std::string_view help;
  bool any_number = false;  // none or more; else exactly one
};

struct OptionSpec {
  std::string_view name;   // "--base"
  std::string_view value;  // "NAME"; "" for a flag
  std::string_view help;
};

struct CommandSpec {
  std::string_view name;
  std::string_view summary;
  std::vector<PositionalSpec> positionals;
  std::vector<OptionSpec> options;
  Result<Outcome> (*run)(Session& session, const Arguments& arguments);
};

}  // namespace modelstore
