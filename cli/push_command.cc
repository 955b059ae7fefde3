#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "catalog/schema/records.h"
#include "cli/commands.h"
#include "cli/session.h"

namespace modelstore {
namespace {

// Looked at before the store is opened, so that a mistyped path creates none.
Status CheckSource(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return StatusFromErrno(errno, "opening " + path);
  return OkStatus();
}

Result<std::string> NameFor(const std::string& path, const Arguments& arguments) {
  std::string name = arguments.Value("--name");
  if (!arguments.values.contains("--name")) {
    std::error_code error;
    const std::filesystem::path resolved = std::filesystem::canonical(path, error);
    name = DefaultModelName(path, error ? "" : resolved.string());
    if (name.empty()) return InvalidArgument("'" + path + "' gives no name: pass --name NAME");
  }
  RETURN_IF_ERROR(CheckModelName(name));
  return name;
}

Result<Outcome> RunPush(Session& session, const Arguments& arguments) {
  const std::string& path = arguments.positionals[0];
  const std::string fidelity = arguments.Value("--fidelity", "exact");
  if (fidelity != "exact") return InvalidArgument("--fidelity " + fidelity + ": expected exact");
  const std::string base = arguments.Value("--base", "auto");
  if (base.empty()) return InvalidArgument("--base: expected auto, none or the name of a model");
  RETURN_IF_ERROR(session.UseMemoryBudget(arguments));
  RETURN_IF_ERROR(CheckSource(path));
  ASSIGN_OR_RETURN(const std::string name, NameFor(path, arguments));
  ASSIGN_OR_RETURN(const std::string absolute, AbsolutePath(path));

  ASSIGN_OR_RETURN(std::string document,
                   session.Call("push", {{"path", absolute}, {"name", name}, {"base", base}, {"fidelity", fidelity}}));
  Outcome out;
  if (!session.options().quiet) out.text = RenderPush(document, session.style());
  out.document = std::move(document);
  return out;
}

}  // namespace

CommandSpec PushCommand() {
  return {.name = "push",
          .summary = "store a file or folder as a model",
          .positionals = {{"PATH", "the file or folder; links to files are followed"}},
          .options = {{"--name", "NAME", "the model's name (default: the last component of PATH)"},
                      {"--base", "auto|none|NAME", "the model to store it against (default: auto, the best of all)"},
                      {"--fidelity", "exact", "exact: every byte as it was (the default)"},
                      kMemoryBudgetOption},
          .run = RunPush};
}

std::string RenderPush(std::string_view document, const Style& style) {
  const auto push = nlohmann::json::parse(document);
  const uint64_t logical = push["logical_bytes"], stored = push["stored_bytes"];
  std::string line = "stored " + Painted(Printable(push["name"].get<std::string>()), Tone::kBold, style) + ": " +
                     HumanBytes(logical) + " -> " + Painted(HumanBytes(stored), Tone::kGood, style);
  if (logical != 0) line += " (" + Percent(static_cast<double>(stored) / static_cast<double>(logical)) + ")";
  if (push["base"].is_string()) line += ", delta against " + Printable(push["base"].get<std::string>());
  if (push["verified"].get<bool>()) line += ", verified";
  line += ", " + HumanSeconds(push["seconds"]) + "\n";

  const auto& levels = push["levels"];
  std::string already;
  const auto add = [&](const char* level, const char* words) {
    if (const uint64_t bytes = levels[level]; bytes != 0)
      already += (already.empty() ? "" : ", ") + HumanBytes(bytes) + words;
  };
  add("identical_file", " in identical files");
  add("identical_tensor", " in identical tensors");
  if (!already.empty()) line += "  already stored: " + already + "\n";
  return line;
}

}  // namespace modelstore
