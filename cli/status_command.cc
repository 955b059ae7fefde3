#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

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

// Whole seconds: a daemon does not count tenths.
std::string Uptime(uint64_t seconds) {
  return seconds < 60 ? std::to_string(seconds) + " s" : HumanSeconds(static_cast<double>(seconds));
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
  std::string out = Text(job.at("request"));
  if (job.at("model").is_string()) out += " " + Text(job.at("model"));
  out += " (user " + std::to_string(Number(job, "uid")) + ")";
  const uint64_t done = Number(job, "done_bytes"), total = Number(job, "total_bytes");
  if (job.at("phase").is_string()) out += ": " + Text(job.at("phase"));
  if (total != 0)
    out += " " + HumanBytes(done) + " of " + HumanBytes(total) + " (" +
           Percent(static_cast<double>(done) / static_cast<double>(total)) + ")";
  return out;
}

// "" when there is nothing to say: no daemon, switched off, no GPU and none asked for.
std::string GpuText(const json& gpu) {
  if (!gpu.is_object()) return "";
  const std::string state = Text(gpu.at("state"));
  if (state == "off" || state == "starting") return "";
  const auto rate = [&](const char* key) { return HumanBytes(Number(gpu, key)) + "/s"; };
  std::string out = gpu.at("name").is_string() ? Text(gpu.at("name")) + ", " : "";
  if (state == "none" || state == "failed")
    return out + (state == "failed" ? "failed: " : "none: ") + Text(gpu.at("reason"));
  out +=
      state + ", measured " + rate("measured_bytes_per_second") + " against " + rate("measured_cpu_bytes_per_second");
  if (Number(gpu, "batches") == 0) return out;
  out += "; " + HumanBytes(Number(gpu, "decoded_bytes")) + " decoded, lately " + rate("recent_bytes_per_second");
  if (Number(gpu, "failed_blocks") != 0) out += ", " + Plural(Number(gpu, "failed_blocks"), "block") + " failed";
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
  const json status = ParseJson(document);
  const bool daemon = status.contains("pid");
  std::string out =
      Painted(daemon ? "modelstored" : "modelstore", Tone::kBold, style) + " " + Text(status.at("version"));
  out += daemon
             ? ", process " + std::to_string(Number(status, "pid")) + ", up " + Uptime(Number(status, "uptime_seconds"))
             : ", without a daemon";
  out += "\n";
  const auto field = [&](std::string_view label, const std::string& value) {
    out += "  " + Painted(label, Tone::kDim, style) + std::string(10 - label.size(), ' ') + value + "\n";
  };
  field("store", Text(status.at("store")));
  if (status.at("mount").is_string())
    field("mount",
          Text(status.at("mount")) + ", read-ahead " + std::to_string(Number(status, "read_ahead_kb")) + " KiB");
  else
    field("mount", "none");
  field("memory", HumanBytes(Number(status, "resident_bytes")) + " resident, budget " +
                      HumanBytes(Number(status, "memory_budget_bytes")));
  field("cache", CacheText(status.at("cache")));
  const json& decode = status.at("decode");
  field("decoder",
        Text(decode.at("target")) + ", " + HumanBytes(Number(status.at("cache"), "decoded_bytes")) + " decoded");
  if (const std::string gpu = GpuText(decode.at("gpu")); !gpu.empty()) field("gpu", gpu);
  if (!daemon) return out;
  // The question itself is a job too.
  std::vector<std::string> jobs;
  for (const json& job : status.at("jobs"))
    if (job.at("request") != "status") jobs.push_back(JobText(job));
  field("clients", std::to_string(Number(status, "clients")));
  field("jobs", jobs.empty() ? "none" : jobs[0]);
  for (size_t i = 1; i < jobs.size(); ++i) field("", jobs[i]);
  return out;
}

}  // namespace modelstore
