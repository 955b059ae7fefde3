// The flags that say how a model is made compact, of `push` and `compact` alike (layer: cli). Stateless.
#pragma once

#include <optional>
#include <vector>

#include "catalog/write/push.h"
#include "cli/command.h"
#include "cli/session.h"

namespace modelstore {

// Whole, finite and nothing behind it. Errors: InvalidArgument.
Result<double> ParseNumber(std::string_view flag, const std::string& text);
// `before` and then those flags.
std::vector<OptionSpec> WithCompactOptions(std::vector<OptionSpec> before);
// Whether any of them is given.
bool HasCompactFlags(const Arguments& arguments);
// Adds what is given to a request's parameters. Errors: InvalidArgument (not a number).
Status AddCompactParameters(const Arguments& arguments, ParameterList* parameters);
// The file of --moments, opened; nothing without it. Errors: NotFound, PermissionDenied, InvalidArgument (a folder).
Result<std::optional<SourceTree>> OpenMoments(const Arguments& arguments);

}  // namespace modelstore
