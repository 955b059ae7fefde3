#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "catalog/schema/records.h"
#include "catalog/write/push.h"
#include "cli/commands.h"
#include "cli/compact_flags.h"
#include "cli/mount_view.h"
#include "cli/replace_source.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

constexpr int kExitFilesLeft = 1;

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

// Adds to the outcome of the push what was replaced.
Status Replace(Session& session, const SourceTree& source, const std::string& name, const MountView& mount,
               Outcome* push) {
  const auto replace = [&](JobControl& job) -> Result<std::string> {
    const Result<ReplaceReport> report = ReplaceSource(source, name, mount, job);
    if (!report.ok()) return report.status().WithContext(name + " is stored; replacing its source");
    auto out = ParseOrderedJson(push->document);
    out["replaced_files"] = report->files;
    out["replaced_bytes"] = report->bytes;
    out["left_files"] = nlohmann::ordered_json::array();
    for (const ReplaceReport::Left& left : report->left)
      out["left_files"].push_back({{"path", left.path}, {"reason", left.reason}});
    if (!report->left.empty()) push->exit_code = kExitFilesLeft;
    return JsonText(out);
  };
  ASSIGN_OR_RETURN(push->document, session.RunJob(replace));
  return OkStatus();
}

Result<Outcome> RunPush(Session& session, const Arguments& arguments) {
  const std::string& path = arguments.positionals[0];
  const std::string fidelity = arguments.Value("--fidelity", "exact");
  const bool is_compact = fidelity == "compact";
  if (!is_compact && fidelity != "exact")
    return InvalidArgument("--fidelity " + fidelity + ": expected exact or compact");
  if (!is_compact && (HasCompactFlags(arguments) || arguments.Has("--or-exact")))
    return InvalidArgument("flags that say how a model is made compact go with --fidelity compact");
  const std::string base = arguments.Value("--base", "auto");
  if (base.empty()) return InvalidArgument("--base: expected auto, none or the name of a model");
  const bool replace = arguments.Has("--replace-source");
  if (replace && !session.through_daemon())
    return InvalidArgument(
        "--replace-source leaves links into the mount of a daemon: leave out --store and MODELSTORE_STORE");
  if (replace && is_compact)
    return InvalidArgument(
        "--replace-source puts links to the very files in their place: it goes with exact files only");
  RETURN_IF_ERROR(session.UseMemoryBudget(arguments));
  ParameterList parameters;
  RETURN_IF_ERROR(AddCompactParameters(arguments, &parameters));
  ASSIGN_OR_RETURN(const std::optional<SourceTree> moments, OpenMoments(arguments));
  ASSIGN_OR_RETURN(const std::string name, NameFor(path, arguments));
  ASSIGN_OR_RETURN(const std::string absolute, AbsolutePath(path));
  ASSIGN_OR_RETURN(const SourceTree source, OpenSource(absolute));
  for (const std::string& note : source.notes()) session.Warn(note);

  std::optional<MountView> mount;
  if (replace) {
    ASSIGN_OR_RETURN(mount, MountView::Find(session));  // before anything is stored
  }

  parameters.insert(parameters.end(), {{"name", name},
                                       {"base", base},
                                       {"fidelity", fidelity},
                                       {"update", arguments.Has("--update")},
                                       {"allow_compact", arguments.Has("--allow-compact")},
                                       {"or_exact", arguments.Has("--or-exact")}});
  Outcome out;
  ASSIGN_OR_RETURN(out.document,
                   session.Call("push", parameters, {.source = &source, .moments = moments ? &*moments : nullptr}));
  if (mount) RETURN_IF_ERROR(Replace(session, source, name, *mount, &out));
  if (!session.options().quiet) out.text = RenderPush(out.document, session.style());
  return out;
}

}  // namespace

CommandSpec PushCommand() {
  return {.name = "push",
          .summary = "store a file or folder as a model",
          .positionals = {{"PATH", "the file or folder; links to files are followed"}},
          .options = WithCompactOptions(
              {{"--name", "NAME", "the model's name (default: the last component of PATH)"},
               {"--base", "auto|none|NAME", "the model to store it against (default: auto, the best of all)"},
               {"--update", "", "replace the model of that name; who reads it reads the old files to the end"},
               {"--replace-source", "", "then put links into the daemon's mount in the place of the files"},
               {"--fidelity", "exact|compact",
                "exact: every byte as it was (the default); compact: far smaller, with a measured error"},
               {"--allow-compact", "", "the daemon may make it compact when space is short (its configuration)"},
               {"--or-exact", "", "compact: store it exactly when it cannot be within --max-drift"},
               kMemoryBudgetOption}),
          .run = RunPush};
}

std::string RenderPush(std::string_view document, const Style& style) {
  const auto push = ParseJson(document);
  const uint64_t logical = push.at("logical_bytes"), stored = push.at("stored_bytes");
  std::string line = "stored " + Painted(Printable(push.at("name").get<std::string>()), Tone::kBold, style) + ": " +
                     HumanBytes(logical) + " -> " + Painted(HumanBytes(stored), Tone::kGood, style);
  if (logical != 0) line += " (" + Percent(static_cast<double>(stored) / static_cast<double>(logical)) + ")";
  const std::string base = push.at("base").is_string() ? Printable(push.at("base").get<std::string>()) : "";
  if (push.contains("recipe"))
    line += ", derived" + (base.empty() ? "" : " from " + base) + " (" +
            Printable(push.at("recipe").get<std::string>()) + ")";
  else if (!base.empty())
    line += ", delta against " + base;
  if (push.value("fidelity", "exact") == "compact")
    line += ", compact (drift " + DriftText(push.at("drift")) + ", " + push.at("drift_kind").get<std::string>() + ")";
  if (push.at("verified").get<bool>()) line += ", verified";
  line += ", " + HumanSeconds(push.at("seconds")) + "\n";

  const auto& levels = push.at("levels");
  std::string already;
  const auto add = [&](const char* level, const char* words) {
    if (const uint64_t bytes = levels.at(level); bytes != 0)
      already += (already.empty() ? "" : ", ") + HumanBytes(bytes) + words;
  };
  add("identical_file", " in identical files");
  add("identical_tensor", " in identical tensors");
  if (!already.empty()) line += "  already stored: " + already + "\n";
  if (push.contains("replaced_files")) {
    line += "  replaced by links: " + Plural(push.at("replaced_files"), "file") + ", " +
            HumanBytes(push.at("replaced_bytes"));
    if (const size_t left = push.at("left_files").size(); left != 0)
      line += "; left as they are: " + Plural(left, "file");
    line += "\n";
  }
  return line;
}

}  // namespace modelstore
