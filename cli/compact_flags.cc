#include "cli/compact_flags.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <iterator>

namespace modelstore {
namespace {

struct NumberFlag {
  OptionSpec option;
  const char* parameter;
};

constexpr NumberFlag kNumbers[] = {
    {{"--target-ratio", "R", "compact: at least so many times smaller than the files, all that is added counted"},
     "target_ratio"},
    {{"--max-drift", "X", "compact: at most this drift (0.05 when nothing else is said); else nothing is stored"},
     "max_drift"},
    {{"--rank", "N", "compact: so many factors for every tensor, instead of a budget"}, "rank"},
    {{"--residual-step", "X", "compact: and a residual of this step, in standard deviations of the delta"},
     "residual_step"},
    {{"--bits", "N", "compact: as GPT-Zip does: the delta in so many bits"}, "bits"},
    {{"--sparsity", "S", "compact: … of which this share is pruned (0 to 1)"}, "sparsity"},
    {{"--group", "G", "compact: … with one scale for so many elements"}, "group"},
};

}  // namespace

Result<double> ParseNumber(std::string_view flag, const std::string& text) {
  errno = 0;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || errno != 0 || !std::isfinite(value))
    return InvalidArgument(std::string(flag) + " " + text + ": expected a number");
  return value;
}

std::vector<OptionSpec> WithCompactOptions(std::vector<OptionSpec> before) {
  for (const NumberFlag& number : kNumbers) before.push_back(number.option);
  before.push_back({"--schedule", "uniform|aptc|rd", "compact: how a budget is spread over the tensors (default: rd)"});
  before.push_back(
      {"--moments", "FILE", "compact: the model's second moments, which make it better (docs/moments.md)"});
  before.push_back({"--scale", "A|auto", "compact: the factor of what is kept of every delta (default: auto)"});
  return before;
}

bool HasCompactFlags(const Arguments& arguments) {
  for (const OptionSpec& option : WithCompactOptions({})) {
    if (arguments.values.contains(option.name)) return true;
  }
  return false;
}

Status AddCompactParameters(const Arguments& arguments, ParameterList* parameters) {
  for (const NumberFlag& number : kNumbers) {
    if (!arguments.values.contains(number.option.name)) continue;
    ASSIGN_OR_RETURN(const double value, ParseNumber(number.option.name, arguments.Value(number.option.name)));
    parameters->emplace_back(number.parameter, value);
  }
  if (arguments.values.contains("--schedule")) parameters->emplace_back("schedule", arguments.Value("--schedule"));
  if (const std::string scale = arguments.Value("--scale", "auto"); scale != "auto") {
    ASSIGN_OR_RETURN(const double value, ParseNumber("--scale", scale));
    parameters->emplace_back("scale", value);
  }
  return OkStatus();
}

Result<std::optional<SourceTree>> OpenMoments(const Arguments& arguments) {
  if (!arguments.values.contains("--moments")) return std::optional<SourceTree>();
  ASSIGN_OR_RETURN(const std::string path, AbsolutePath(arguments.Value("--moments")));
  ASSIGN_OR_RETURN(SourceTree tree, SourceTree::Scan(path));
  if (tree.files().size() != 1)
    return InvalidArgument("--moments " + path + ": expected one file, found a folder of " +
                           std::to_string(tree.files().size()));
  return std::optional(std::move(tree));
}

}  // namespace modelstore
