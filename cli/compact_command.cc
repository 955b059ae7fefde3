#include <unistd.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/compact_flags.h"
#include "cli/session.h"
#include "cli/terminal.h"

namespace modelstore {
namespace {

Status Confirm(const std::string& name) {
  if (!IsTerminal(STDIN_FILENO) || !IsTerminal(STDERR_FILENO))
    return InvalidArgument(
        "compact asks before it gives the exact files up and there is no terminal to ask on: pass --yes");
  WriteAll(STDERR_FILENO, "make " + Printable(name) + " compact? Its exact files cannot be had back [y/N] ");
  const std::string answer = ReadLine();
  if (answer == "y" || answer == "Y" || answer == "yes") return OkStatus();
  return Cancelled("nothing changed");
}

Result<Outcome> RunCompact(Session& session, const Arguments& arguments) {
  const std::string& name = arguments.positionals[0];
  ParameterList parameters = {{"name", name}, {"base", arguments.Value("--base", "auto")}};
  RETURN_IF_ERROR(AddCompactParameters(arguments, &parameters));
  ASSIGN_OR_RETURN(const std::optional<SourceTree> moments, OpenMoments(arguments));
  RETURN_IF_ERROR(session.UseMemoryBudget(arguments));
  if (!arguments.Has("--yes")) RETURN_IF_ERROR(Confirm(name));
  Outcome out;
  ASSIGN_OR_RETURN(out.document, session.Call("compact", parameters, {.moments = moments ? &*moments : nullptr}));
  if (!session.options().quiet) out.text = RenderPush(out.document, session.style());
  return out;
}

}  // namespace

CommandSpec CompactCommand() {
  return {.name = "compact",
          .summary = "give a stored finetune's exact files up for a compact copy",
          .positionals = {{"NAME", "the model; prune then frees what it no longer needs"}},
          .options = WithCompactOptions({{"--base", "auto|NAME", "the model to store it against (default: auto)"},
                                         {"--yes", "", "do not ask"},
                                         kMemoryBudgetOption}),
          .run = RunCompact};
}

}  // namespace modelstore
