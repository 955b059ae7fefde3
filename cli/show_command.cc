#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

using nlohmann::json;

Result<Outcome> RunShow(Session& session, const Arguments& arguments) {
  ASSIGN_OR_RETURN(std::string document, session.Call("show", {{"name", arguments.positionals[0]}}));
  Outcome out;
  out.text = RenderShow(document, session.style());
  out.document = std::move(document);
  return out;
}

std::string Text(const json& value) { return value.is_string() ? Printable(value.get<std::string>()) : ""; }

std::string Both(uint64_t bytes) { return HumanBytes(bytes) + " (" + ExactBytes(bytes) + " bytes)"; }

std::string FractionOf(uint64_t stored, uint64_t logical) {
  return logical == 0 ? "-" : Percent(static_cast<double>(stored) / static_cast<double>(logical));
}

// Of a compact tensor also what is kept of its delta: "compact, rank 16 + residual, drift 0.1".
std::string StoredAs(const json& tensor) {
  std::string out = Text(tensor.at("encoding"));
  if (!tensor.contains("rank")) return out;
  const uint64_t rank = tensor.at("rank");
  const bool residual = tensor.at("residual");
  if (rank > 0) out += ", rank " + std::to_string(rank);
  if (residual) out += rank > 0 ? " + residual" : ", residual";
  return out + ", drift " + DriftText(tensor.at("drift"));
}

}  // namespace

CommandSpec ShowCommand() {
  return {.name = "show",
          .summary = "one model's files and tensors and how each is stored",
          .positionals = {{"NAME", "the model"}},
          .options = {},
          .run = RunShow};
}

std::string RenderShow(std::string_view document, const Style& style) {
  const json model = ParseJson(document);
  const uint64_t logical = model.at("logical_bytes"), stored = model.at("stored_bytes"),
                 shared = model.at("shared_bytes");
  std::string out = Painted(Text(model.at("name")), Tone::kBold, style) + "  " + Text(model.at("kind")) + ", " +
                    Text(model.at("fidelity")) + "\n";
  const auto field = [&](std::string_view label, const std::string& value) {
    out += "  " + Painted(label, Tone::kDim, style) + std::string(9 - label.size(), ' ') + value + "\n";
  };
  if (model.at("base").is_string()) field(model.contains("recipe") ? "source" : "base", Text(model.at("base")));
  field("size", Both(logical));
  field("stored", Both(stored) + ", " + FractionOf(stored, logical));
  if (shared != 0) field("shared", Both(shared) + " with other models");
  if (model.contains("drift")) {
    field("drift", DriftText(model.at("drift")) + " (" + Text(model.at("drift_kind")) + ")");
    if (model.contains("method")) field("method", Text(model.at("method")));
  }
  if (model.contains("recipe")) field("recipe", Text(model.at("recipe")));
  if (model.contains("allow_compact")) field("policy", "may be made compact when space is short");
  field("created", Text(model.at("created")));

  using Align = Table::Align;
  const auto& files = model.at("files");
  out += "\n";
  Table file_table({{"FILE"}, {"KIND"}, {"SIZE", Align::kRight}, {"STORED", Align::kRight}, {"SHA-256"}});
  for (const json& file : files) {
    file_table.Row({{Text(file.at("path")), Tone::kBold},
                    {Text(file.at("kind"))},
                    {HumanBytes(file.at("logical_bytes"))},
                    {HumanBytes(file.at("stored_bytes")), Tone::kGood},
                    {Text(file.at("sha256")), Tone::kDim}});
  }
  out += file_table.Render(style);
  if (model.contains("unreadable_files"))
    out += "not shown, because you may not read them: " + Plural(model.at("unreadable_files"), "file") + "\n";

  for (const json& file : files) {
    if (file.at("tensors").empty()) continue;
    out.append("\n").append(Painted(Text(file.at("path")), Tone::kBold, style));
    out.append(": ").append(Plural(file.at("tensors").size(), "tensor")).append("\n");
    Table table({{"TENSOR"},
                 {"DTYPE"},
                 {"SHAPE"},
                 {"STORED AS"},
                 {"SIZE", Align::kRight},
                 {"STORED", Align::kRight},
                 {"BASE"}});
    for (const json& tensor : file.at("tensors")) {
      std::string base = Text(tensor.at("base"));
      // A base tensor of the same name needs no words.
      if (tensor.at("base_tensor").is_string() && tensor.at("base_tensor") != tensor.at("name"))
        base.append(base.empty() ? "" : " ").append(Text(tensor.at("base_tensor")));
      table.Row({{Text(tensor.at("name"))},
                 {Text(tensor.at("dtype"))},
                 {ShapeText(tensor.at("shape").get<std::vector<uint64_t>>())},
                 {StoredAs(tensor)},
                 {HumanBytes(tensor.at("logical_bytes"))},
                 {HumanBytes(tensor.at("stored_bytes")), Tone::kGood},
                 {base.empty() ? "-" : base}});
    }
    out += table.Render(style);
  }
  return out;
}

}  // namespace modelstore
