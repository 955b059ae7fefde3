#include <array>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

using nlohmann::json;

std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : Printable(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string Text(const json& value) { return value.is_string() ? Escaped(value.get<std::string>()) : "–"; }

struct Level {
  const char* key;
  const char* words;
  const char* colour;
};
constexpr std::array<Level, 8> kLevels = {{{"identical_file", "identical files", "#2f855a"},
                                           {"identical_tensor", "identical tensors", "#68a67d"},
                                           {"delta", "delta against a base", "#3182ce"},
                                           {"self", "coded by itself", "#b7791f"},
                                           {"compact", "compact", "#805ad5"},
                                           {"projected", "computed from others", "#319795"},
                                           {"content", "other content", "#718096"},
                                           {"raw", "raw", "#c53030"}}};

// A bar whose parts are the levels' shares of `whole`.
std::string Bar(const json& levels, uint64_t whole) {
  std::string out = "<div class=\"bar\">";
  for (const Level& level : kLevels) {
    const uint64_t bytes = levels[level.key];
    if (bytes == 0 || whole == 0) continue;
    const double share = 100 * static_cast<double>(bytes) / static_cast<double>(whole);
    out += "<i style=\"width:" + std::to_string(share) + "%;background:" + level.colour + "\" title=\"" + level.words +
           ": " + HumanBytes(bytes) + "\"></i>";
  }
  return out + "</div>";
}

constexpr std::string_view kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>modelstore report</title>
<style>
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem}.big{font-size:2.2rem;font-weight:600}
table{border-collapse:collapse;width:100%;margin-top:1.5rem}
th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #8884}
th:first-child,td:first-child,td.l,th.l{text-align:left}th{font-weight:500;opacity:.7}
.bar{display:flex;height:.8rem;min-width:8rem;border-radius:.2rem;overflow:hidden;background:#8883}.bar i{display:block}
.legend span{margin-right:1.2rem;white-space:nowrap}
.legend b{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.3rem}
</style></head><body>
<h1>modelstore report</h1>
)";

}  // namespace

std::string RenderReportHtml(std::string_view document) {
  const json report = ParseJson(document);
  const uint64_t logical = report.at("logical_bytes"), stored = report.at("stored_bytes");
  const json& models = report.at("models");
  std::string out(kHead);
  out += "<p class=\"big\">" + Percent(report.at("saved_fraction")) + " saved</p>\n<p>" +
         Plural(models.size(), "model") + ", " + HumanBytes(logical) + " of files, stored in " + HumanBytes(stored) +
         " (" + Ratio(logical, stored) + "); " + HumanBytes(report.at("disk_bytes")) + " on disk, " +
         HumanBytes(report.at("prunable_bytes")) + " could be pruned.</p>\n" + Bar(report.at("levels"), logical) +
         "\n<p class=\"legend\">";
  for (const Level& level : kLevels) {
    const uint64_t bytes = report.at("levels").at(level.key);
    if (bytes == 0) continue;
    out += "<span><b style=\"background:" + std::string(level.colour) + "\"></b>" + level.words + " " +
           HumanBytes(bytes) + "</span>";
  }
  out +=
      "</p>\n<table><tr><th>model</th><th class=\"l\">kind</th><th class=\"l\">base</th><th>size</th><th>stored</th>"
      "<th>shared</th><th>ratio</th><th class=\"l\">how</th></tr>\n";
  for (const json& model : models) {
    const uint64_t size = model.at("logical_bytes"), own = model.at("stored_bytes");
    out += "<tr><td>" + Text(model.at("name")) + "</td><td class=\"l\">" + Text(model.at("kind")) +
           "</td><td class=\"l\">" + Text(model.at("base")) + "</td><td>" + HumanBytes(size) + "</td><td>" +
           HumanBytes(own) + "</td><td>" + HumanBytes(model.at("shared_bytes")) + "</td><td>" + Ratio(size, own) +
           "</td><td>" + Bar(model.at("levels"), size) + "</td></tr>\n";
  }
  return out + "</table>\n</body></html>\n";
}

}  // namespace modelstore
