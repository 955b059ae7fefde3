#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"

namespace modelstore {
namespace {

using nlohmann::json;

Result<Outcome> RunStatus(Session& session, const Arguments&) {
  Outcome out;
  ASSIGN_OR_RETURN(out.document, session.Call("status", {}));
  out.text = RenderStatus(out.document, session.style());
  return out;
}

std::string Text(const json& value) { return value.is_string() ? Printable(value.get<std::string>()) : ""; }

uint64_t Number(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

std::string CacheText(const json& cache) {
  const uint64_t hits = Number(cache, "hits") + Number(cache, "waits"), misses = Number(cache, "misses");
  std::string out = HumanBytes(Number(cache, "bytes")) + " of " + HumanBytes(Number(cache, "capacity_bytes"));
  if (hits + misses != 0)
    out += ", " + Percent(static_cast<double>(hits) / static_cast<double>(hits + misses)) + " of " +
           Plural(hits + misses, "block") + " found decoded";
  return out;
}

std::string JobText(const json& job) {
  std::string out = Text(job["request"]);
  if (job["model"].is_string()) out += " " + Text(job["model"]);
  out += " (user " + std::to_string(Number(job, "uid")) + ")";
  const uint64_t done = Number(job, "done_bytes"), total = Number(job, "total_bytes");
  if (job["phase"].is_string()) out += ": " + Text(job["phase"]);
  if (total != 0)
    out += " " + HumanBytes(done) + " of " + HumanBytes(total) + " (" +
           Percent(static_cast<double>(done) / static_cast<double>(total)) + ")";
  return out;
}

}  // namespace

CommandSpec StatusCommand() {
  return {.name = "status",
          .summary = "the daemon, its mount, memory, cache and running jobs",
          .positionals = {},
          .options = {},
          .run = RunStatus};
}

std::string RenderStatus(std::string_view document, const Style& style) {
  const json status = json::parse(document);
  const bool daemon = status.contains("pid");
  std::string out = Painted(daemon ? "modelstored" : "modelstore", Tone::kBold, style) + " " + Text(status["version"]);
  out += daemon ? ", process " + std::to_string(Number(status, "pid")) + ", up " +
                      HumanSeconds(static_cast<double>(Number(status, "uptime_seconds")))
                : ", without a daemon";
  out += "\n";
  const auto field = [&](std::string_view label, const std::string& value) {
    out += "  " + Painted(label, Tone::kDim, style) + std::string(10 - label.size(), ' ') + value + "\n";
  };
  field("store", Text(status["store"]));
  if (status["mount"].is_string())
    field("mount", Text(status["mount"]) + ", read-ahead " + std::to_string(Number(status, "read_ahead_kb")) + " KiB");
  else
    field("mount", "none");
  field("memory", HumanBytes(Number(status, "resident_bytes")) + " resident, budget " +
                      HumanBytes(Number(status, "memory_budget_bytes")));
  field("cache", CacheText(status["cache"]));
  const json& decode = status["decode"];
  field("decoder", Text(decode["target"]) + (decode["gpu"].is_string() ? ", " + Text(decode["gpu"]) : "") + ", " +
                       HumanBytes(Number(status["cache"], "decoded_bytes")) + " decoded");
  if (!daemon) return out;
  // The question itself is a job too.
  std::vector<std::string> jobs;
  for (const json& job : status["jobs"])
    if (job["request"] != "status") jobs.push_back(JobText(job));
  field("clients", std::to_string(Number(status, "clients")));
  field("jobs", jobs.empty() ? "none" : jobs[0]);
  for (size_t i = 1; i < jobs.size(); ++i) field("", jobs[i]);
  return out;
}

}  // namespace modelstore
