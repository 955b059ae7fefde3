#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

using nlohmann::json;

Result<Outcome> RunLs(Session& session, const Arguments& arguments) {
  ASSIGN_OR_RETURN(std::string document, session.Call("ls", {}));
  Outcome out;
  if (session.options().quiet) {
    // Names only, for scripts and completion: as they are, unless a terminal would obey them.
    const bool is_terminal = isatty(STDOUT_FILENO) != 0;
    const json parsed = ParseJson(document);
    for (const json& model : parsed.at("models")) {
      const auto& name = model.at("name").get_ref<const std::string&>();
      out.text += (is_terminal ? Printable(name) : name) + "\n";
    }
  } else {
    out.text = RenderLs(document, arguments.Has("--tree"), session.style());
  }
  out.document = std::move(document);
  return out;
}

struct Line {
  std::string prefix;  // box characters of the tree
  const json* model;
};

// Families: every model under its base. Bases can form a ring (each gives most bytes of the other's): what no root
// reaches is shown as a root.
class Families {
 public:
  Families(const json& models, const Style& style) : style_(style) {
    std::set<std::string> names;
    for (const json& model : models) names.insert(model.at("name").get<std::string>());
    std::vector<const json*> roots;
    for (const json& model : models) {
      const bool has_base = model.at("base").is_string() && names.contains(model.at("base").get<std::string>());
      if (has_base)
        children_[model.at("base").get<std::string>()].push_back(&model);
      else
        roots.push_back(&model);
    }
    for (const json* root : roots) Add(*root, "", "");
    for (const json& model : models)
      if (!shown_.contains(&model)) Add(model, "", "");
  }
  std::vector<Line> Release() { return std::move(lines_); }

 private:
  void Add(const json& model, const std::string& prefix, const std::string& below) {
    if (!shown_.insert(&model).second) return;
    lines_.push_back({prefix, &model});
    std::vector<const json*> next;
    for (const json* child : children_[model.at("name").get<std::string>()])
      if (!shown_.contains(child)) next.push_back(child);
    for (const json* child : next) {
      const bool last = child == next.back();
      if (style_.unicode)
        Add(*child, below + (last ? "└─ " : "├─ "), below + (last ? "   " : "│  "));
      else
        Add(*child, below + (last ? "`- " : "|- "), below + (last ? "   " : "|  "));
    }
  }

  const Style& style_;
  std::map<std::string, std::vector<const json*>> children_;
  std::set<const json*> shown_;
  std::vector<Line> lines_;
};

}  // namespace

CommandSpec LsCommand() {
  return {.name = "ls",
          .summary = "list the models",
          .positionals = {},
          .options = {{"--tree", "", "families: every model under the base it is stored against"}},
          .run = RunLs};
}

std::string RenderLs(std::string_view document, bool tree, const Style& style) {
  const json parsed = ParseJson(document);
  const json& models = parsed.at("models");
  if (models.empty()) return "no models stored; 'modelstore push PATH' stores one\n";

  std::vector<Line> lines;
  if (tree) {
    lines = Families(models, style).Release();
  } else {
    for (const json& model : models) lines.push_back({"", &model});
  }

  using Align = Table::Align;
  std::vector<Table::Column> columns = {{"MODEL"},
                                        {"KIND"},
                                        {"SIZE", Align::kRight},
                                        {"STORED", Align::kRight},
                                        {"SHARED", Align::kRight},
                                        {"STORED/SIZE", Align::kRight}};
  if (!tree) columns.push_back({"BASE"});
  Table table(std::move(columns));
  for (const Line& line : lines) {
    const json& model = *line.model;
    const uint64_t logical = model.at("logical_bytes"), stored = model.at("stored_bytes"),
                   shared = model.at("shared_bytes");
    std::string kind = model.at("kind");
    if (model.contains("drift")) kind += " (compact, drift " + DriftText(model.at("drift")) + ")";
    if (model.contains("recipe")) kind += ": " + Printable(model.at("recipe").get<std::string>());
    std::vector<Cell> row = {
        {line.prefix + Printable(model.at("name").get<std::string>()), Tone::kBold},
        {kind},
        {HumanBytes(logical)},
        {HumanBytes(stored), Tone::kGood},
        {shared == 0 ? "-" : HumanBytes(shared)},
        {logical == 0 ? "-" : Percent(static_cast<double>(stored) / static_cast<double>(logical))}};
    if (!tree) row.push_back({model.at("base").is_string() ? Printable(model.at("base").get<std::string>()) : "-"});
    table.Row(std::move(row));
  }
  return table.Render(style);
}

}  // namespace modelstore
