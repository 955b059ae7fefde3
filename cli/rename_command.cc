#include "cli/commands.h"
#include "cli/session.h"

namespace modelstore {
namespace {

Result<Outcome> RunRename(Session& session, const Arguments& arguments) {
  const std::string& from = arguments.positionals[0];
  const std::string& to = arguments.positionals[1];
  Outcome out;
  ASSIGN_OR_RETURN(out.document, session.Call("rename", {{"from", from}, {"to", to}}));
  if (!session.options().quiet) out.text = "renamed " + Printable(from) + " to " + Printable(to) + "\n";
  return out;
}

}  // namespace

CommandSpec RenameCommand() {
  return {.name = "rename",
          .summary = "give a model another name",
          .positionals = {{"OLD", "the model"}, {"NEW", "its new name"}},
          .options = {},
          .run = RunRename};
}

}  // namespace modelstore
