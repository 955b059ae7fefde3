#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"
#include "codec/support/files.h"
#include "codec/support/unique_fd.h"

namespace modelstore {
namespace {

using nlohmann::json;

// Into what is there and is no file: a pipe, a terminal, /dev/null.
Status WriteInto(const std::string& path, const std::string& page) {
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY));
  if (!fd.ok()) return StatusFromErrno(errno, "opening " + path);
  return WriteAll(fd.get(), AsBytes(page), path);
}

// `named` is absolute. A file is written beside its place and renamed, so that a page that is being served is never
// half there; one that was there gives it owner and mode. Links are followed.
Status WritePage(const std::string& named, const std::string& page) {
  struct stat old {};
  const bool exists = stat(named.c_str(), &old) == 0;
  if (exists && !S_ISREG(old.st_mode)) return WriteInto(named, page);
  std::string path = named;
  if (exists) {
    const std::unique_ptr<char, decltype(&std::free)> real(realpath(named.c_str(), nullptr), &std::free);
    if (real == nullptr) return StatusFromErrno(errno, "following " + named);
    path = real.get();
  } else if (lstat(named.c_str(), &old) == 0) {
    return NotFound(named + " is a link to nothing");
  }
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  ASSIGN_OR_RETURN(const std::string name, RandomName(".modelstore-report-"));
  const std::string partial = folder + name;
  UniqueFd fd(open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, exists ? 0600 : 0666));
  if (!fd.ok()) return StatusFromErrno(errno, "creating " + path);
  Status status = WriteAll(fd.get(), AsBytes(page), path);
  if (exists && status.ok()) {
    // Another's file that cannot be given back to its owner is kept from everybody else.
    const bool is_theirs = fchown(fd.get(), old.st_uid, old.st_gid) == 0;
    const mode_t mode = is_theirs ? old.st_mode & 0777 : old.st_mode & S_IRWXU;
    if (fchmod(fd.get(), mode) != 0) status = StatusFromErrno(errno, "setting the mode of " + path);
  }
  // Network file systems say only now that there was no room.
  if (close(fd.Release()) != 0 && status.ok()) status = StatusFromErrno(errno, "writing " + path);
  if (status.ok() && rename(partial.c_str(), path.c_str()) != 0) status = StatusFromErrno(errno, "writing " + path);
  if (!status.ok()) unlink(partial.c_str());
  return status;
}

Result<Outcome> RunReport(Session& session, const Arguments& arguments) {
  ASSIGN_OR_RETURN(std::string document, session.Call("report", {}));
  if (arguments.values.contains("--html")) {
    ASSIGN_OR_RETURN(const std::string page, AbsolutePath(arguments.Value("--html")));
    RETURN_IF_ERROR(WritePage(page, RenderReportHtml(document)));
  }
  Outcome out;
  out.text = RenderReport(document, session.style());
  out.document = std::move(document);
  return out;
}

struct Level {
  const char* key;
  const char* words;
};
constexpr std::array<Level, 8> kLevels = {{{"identical_file", "identical files"},
                                           {"identical_tensor", "identical tensors"},
                                           {"delta", "delta against a base"},
                                           {"self", "coded by itself"},
                                           {"compact", "compact"},
                                           {"projected", "computed from others"},
                                           {"content", "other content"},
                                           {"raw", "raw"}}};

std::string FractionOf(uint64_t part, uint64_t whole) {
  return whole == 0 ? "-" : Percent(static_cast<double>(part) / static_cast<double>(whole));
}

std::string BytesOrDash(uint64_t bytes) { return bytes == 0 ? "-" : HumanBytes(bytes); }

}  // namespace

CommandSpec ReportCommand() {
  return {.name = "report",
          .summary = "what the store holds, what it costs and what could be freed",
          .positionals = {},
          .options = {{"--html", "FILE", "also write the report as a web page"}},
          .run = RunReport};
}

std::string RenderReport(std::string_view document, const Style& style) {
  const json report = ParseJson(document);
  const uint64_t logical = report.at("logical_bytes"), stored = report.at("stored_bytes"),
                 disk = report.at("disk_bytes");
  const json& models = report.at("models");
  std::string out = Plural(models.size(), "model") + ", " + HumanBytes(logical) + " of files, stored in " +
                    Painted(HumanBytes(stored), Tone::kGood, style);
  if (logical != 0) {
    out += ": " + Painted(Percent(report.at("saved_fraction")) + " saved", Tone::kGood, style) + " (" +
           Ratio(logical, stored) + ")";
  }
  out += "\non disk " + HumanBytes(disk);
  const uint64_t prunable = report.at("prunable_bytes");
  out += prunable == 0 ? ", nothing to prune\n"
                       : ", 'modelstore prune' frees " + Painted(HumanBytes(prunable), Tone::kWarn, style) + "\n";
  if (models.empty()) return out;

  using Align = Table::Align;
  Table levels({{"HOW IT IS STORED"}, {"SIZE", Align::kRight}, {"SHARE", Align::kRight}});
  for (const Level& level : kLevels) {
    const uint64_t bytes = report.at("levels").at(level.key);
    if (bytes != 0) levels.Row({{level.words}, {HumanBytes(bytes)}, {FractionOf(bytes, logical)}});
  }
  levels.Row({{"total", Tone::kBold}, {HumanBytes(logical), Tone::kBold}, {FractionOf(logical, logical)}});
  out.append("\n").append(levels.Render(style)).append("\n");

  Table table({{"MODEL"},
               {"KIND"},
               {"SIZE", Align::kRight},
               {"STORED", Align::kRight},
               {"SHARED", Align::kRight},
               {"IDENTICAL", Align::kRight},
               {"DELTA", Align::kRight},
               {"SELF", Align::kRight},
               {"OTHER", Align::kRight},
               {"BASE"}});
  uint64_t exclusive = 0, size = 0;
  for (const json& model : models) {
    const json& own = model.at("levels");
    const uint64_t identical = own.at("identical_file").get<uint64_t>() + own.at("identical_tensor").get<uint64_t>();
    const uint64_t other = own.at("raw").get<uint64_t>() + own.at("content").get<uint64_t>() +
                           own.at("compact").get<uint64_t>() + own.at("projected").get<uint64_t>();
    exclusive += model.at("stored_bytes").get<uint64_t>();
    size += model.at("logical_bytes").get<uint64_t>();
    table.Row({{Printable(model.at("name").get<std::string>()), Tone::kBold},
               {model.at("kind").get<std::string>() +
                (model.contains("drift") ? " (compact, drift " + DriftText(model.at("drift")) + ")" : "")},
               {HumanBytes(model.at("logical_bytes"))},
               {HumanBytes(model.at("stored_bytes")), Tone::kGood},
               {BytesOrDash(model.at("shared_bytes"))},
               {BytesOrDash(identical)},
               {BytesOrDash(own.at("delta"))},
               {BytesOrDash(own.at("self"))},
               {BytesOrDash(other)},
               {model.at("base").is_string() ? Printable(model.at("base").get<std::string>()) : "-"}});
  }
  table.Row({{"total", Tone::kBold},
             {""},
             {HumanBytes(size), Tone::kBold},
             {HumanBytes(exclusive), Tone::kBold},
             {BytesOrDash(stored - std::min(stored, exclusive)), Tone::kBold},  // counted once
             {""},
             {""},
             {""},
             {""},
             {""}});
  return out + table.Render(style);
}

}  // namespace modelstore
