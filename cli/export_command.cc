#include <memory>
#include <nlohmann/json.hpp>

#include "catalog/write/folder_sink.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

Result<Outcome> RunExport(Session& session, const Arguments& arguments) {
  RETURN_IF_ERROR(session.UseMemoryBudget(arguments));
  ASSIGN_OR_RETURN(const std::string dir, AbsolutePath(arguments.positionals[1]));
  const std::unique_ptr<ExportSink> folder = NewFolderSink(dir);
  ASSIGN_OR_RETURN(std::string document,
                   session.Call("export", {{"name", arguments.positionals[0]}, {"dir", dir}}, {.sink = folder.get()}));
  Outcome out;
  if (!session.options().quiet) out.text = RenderExport(document, session.style());
  out.document = std::move(document);
  return out;
}

}  // namespace

CommandSpec ExportCommand() {
  return {.name = "export",
          .summary = "write a model's files as plain files again",
          .positionals = {{"NAME", "the model"}, {"DIR", "the folder to write to; files that exist are refused"}},
          .options = {kMemoryBudgetOption},
          .run = RunExport};
}

std::string RenderExport(std::string_view document, const Style& style) {
  const auto report = ParseJson(document);
  return "exported " + Painted(Printable(report.at("name").get<std::string>()), Tone::kBold, style) + ": " +
         Plural(report.at("files"), "file") + ", " + HumanBytes(report.at("bytes")) + ", to " +
         Printable(report.at("dir").get<std::string>()) + "\n";
}

}  // namespace modelstore
