#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "catalog/schema/records.h"
#include "cli/commands.h"
#include "cli/session.h"

namespace modelstore {
namespace {

// Opened with this process's rights, and before a store or a daemon is: a source that cannot be stored creates none.
Result<SourceTree> OpenSource(const std::string& path) {
  Result<SourceTree> source = SourceTree::Scan(path);
  // The words were right, what they name cannot be stored.
  if (source.status().code() == StatusCode::kInvalidArgument)
    return Unsupported(std::string(source.status().message()));
  return source;
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
  ASSIGN_OR_RETURN(const std::string name, NameFor(path, arguments));
  ASSIGN_OR_RETURN(const std::string absolute, AbsolutePath(path));
  ASSIGN_OR_RETURN(const SourceTree source, OpenSource(absolute));

  const ParameterList parameters = {
      {"name", name}, {"base", base}, {"fidelity", fidelity}, {"update", arguments.Has("--update")}};
  ASSIGN_OR_RETURN(std::string document, session.Call("push", parameters, {.source = &source}));
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
                      {"--update", "", "replace the model of that name; who reads it reads the old files to the end"},
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
