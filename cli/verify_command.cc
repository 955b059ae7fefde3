#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

using nlohmann::json;

Result<Outcome> RunVerify(Session& session, const Arguments& arguments) {
  RETURN_IF_ERROR(session.UseMemoryBudget(arguments));
  ASSIGN_OR_RETURN(std::string document, session.Call("verify", {{"names", arguments.positionals}}));
  const bool damaged = !ParseJson(document).at("failed").empty();
  Outcome out;
  if (damaged || !session.options().quiet) out.text = RenderVerify(document, session.style());
  out.document = std::move(document);
  out.exit_code = damaged ? StatusCodeExit(StatusCode::kCorruption) : 0;
  return out;
}

}  // namespace

CommandSpec VerifyCommand() {
  return {.name = "verify",
          .summary = "decode every file and check every hash",
          .positionals = {{"NAME", "the models to check (default: all, and the store itself)", /*any_number=*/true}},
          .options = {kMemoryBudgetOption},
          .run = RunVerify};
}

std::string RenderVerify(std::string_view document, const Style& style) {
  const json report = ParseJson(document);
  const json& failed = report.at("failed");
  const std::string checked =
      Plural(report.at("checked"), "file") + " checked, " + HumanBytes(report.at("checked_bytes")) + " decoded";
  if (failed.empty()) return checked + ": " + Painted("all good", Tone::kGood, style) + "\n";
  std::string out = checked + ": " + Painted(Plural(failed.size(), "failure"), Tone::kBad, style) + "\n";
  for (const json& failure : failed) {
    const std::string model = Printable(failure.at("model").get<std::string>());
    const std::string file = Printable(failure.at("file").get<std::string>());
    std::string object = model.empty() ? "the store" : model;
    if (!file.empty()) object += (model.empty() ? ": " : "/") + file;
    out +=
        "  " + Painted(object, Tone::kBold, style) + ": " + Printable(failure.at("reason").get<std::string>()) + "\n";
  }
  return out;
}

}  // namespace modelstore
