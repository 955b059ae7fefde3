#include <unistd.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

Result<std::string> Remove(Session& session, const std::string& name, bool dry_run) {
  return session.Call("rm", {{"name", name}, {"dry_run", dry_run}});
}

// Asks on the terminal, having said what goes. Errors: Cancelled when the answer is not yes.
Status Confirm(Session& session, const std::string& name) {
  ASSIGN_OR_RETURN(const std::string preview, Remove(session, name, /*dry_run=*/true));
  const uint64_t freed = ParseJson(preview).at("freed_bytes");
  const std::string consequence =
      freed == 0 ? "Other models need all that it holds" : "'modelstore prune' will then free " + HumanBytes(freed);
  WriteAll(STDERR_FILENO, "remove " + Printable(name) + "? " + consequence + " [y/N] ");
  const std::string answer = ReadLine();
  if (answer == "y" || answer == "Y" || answer == "yes") return OkStatus();
  return Cancelled("nothing removed");
}

Result<Outcome> RunRm(Session& session, const Arguments& arguments) {
  const std::string& name = arguments.positionals[0];
  const bool dry_run = arguments.Has("--dry-run");
  if (!dry_run && !arguments.Has("--yes")) {
    if (!IsTerminal(STDIN_FILENO) || !IsTerminal(STDERR_FILENO))
      return InvalidArgument("rm asks before it removes and there is no terminal to ask on: pass --yes");
    RETURN_IF_ERROR(Confirm(session, name));
  }
  ASSIGN_OR_RETURN(std::string document, Remove(session, name, dry_run));
  Outcome out;
  if (dry_run || !session.options().quiet) out.text = RenderRm(document, session.style());
  out.document = std::move(document);
  return out;
}

}  // namespace

CommandSpec RmCommand() {
  return {.name = "rm",
          .summary = "remove a model; prune then frees its space",
          .positionals = {{"NAME", "the model"}},
          .options = {{"--dry-run", "", "only say what would be freed"}, {"--yes", "", "do not ask"}},
          .run = RunRm};
}

std::string RenderRm(std::string_view document, const Style& style) {
  const auto report = ParseJson(document);
  const bool dry_run = report.at("dry_run");
  std::string out;
  for (const auto& model : report.at("models")) {
    out += (dry_run ? "would remove " : "removed ") + Painted(Printable(model.get<std::string>()), Tone::kBold, style) +
           "\n";
  }
  const uint64_t freed = report.at("freed_bytes");
  if (freed == 0) return out + "nothing to free: other models need all that it holds\n";
  return out + "'modelstore prune' " + (dry_run ? "would then free " : "frees ") + HumanBytes(freed) + "\n";
}

}  // namespace modelstore
