#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

Result<Outcome> RunPrune(Session& session, const Arguments& arguments) {
  const bool dry_run = arguments.Has("--dry-run");
  ASSIGN_OR_RETURN(std::string document, session.Call("prune", {{"dry_run", dry_run}}));
  Outcome out;
  if (dry_run || !session.options().quiet) out.text = RenderPrune(document, session.style());
  out.document = std::move(document);
  return out;
}

}  // namespace

CommandSpec PruneCommand() {
  return {.name = "prune",
          .summary = "free what no model needs any more",
          .positionals = {},
          .options = {{"--dry-run", "", "only say what would be freed"}},
          .run = RunPrune};
}

std::string RenderPrune(std::string_view document, const Style& style) {
  const auto report = ParseJson(document);
  const bool dry_run = report.at("dry_run");
  const uint64_t freed = report.at("freed_bytes");
  std::string out = freed == 0 ? "nothing to prune"
                               : (dry_run ? "would free " : "freed ") + Painted(HumanBytes(freed), Tone::kGood, style) +
                                     ": " + Plural(report.at("tensors"), "tensor") + ", " +
                                     Plural(report.at("files"), "file") + ", " + Plural(report.at("blocks"), "block");
  const std::string before = HumanBytes(report.at("disk_bytes_before")),
                    after = HumanBytes(report.at("disk_bytes_after"));
  out += "; on disk " + before;
  if (!dry_run && after != before) out += " -> " + after;
  return out + "\n";
}

}  // namespace modelstore
