#include <unistd.h>

#include <charconv>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"
#include "codec/kernels/cpu_target.h"
#include "gpu/engine/device_check.h"
#include "gpu/engine/plugin.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMeasuredBytes = 64 << 20;
// One slot: what kMeasuredBytes take with their predictions.
constexpr DeviceSlots kSlots = {1, 3 * kMeasuredBytes, 2 * kMeasuredBytes, 2 * kMeasuredBytes};

Json DescribeDevice(size_t number, const DeviceInfo& info) {
  return {{"number", number},
          {"name", info.name},
          {"memory_bytes", info.memory_bytes},
          {"multiprocessors", info.multiprocessors},
          {"compute", std::to_string(info.compute_major) + "." + std::to_string(info.compute_minor)}};
}

uint64_t Whole(double bytes) { return static_cast<uint64_t>(bytes); }

// Adds what the device decodes, and how fast, to its description. Errors: Unavailable.
Status VerifyOn(const std::shared_ptr<const Plugin>& plugin, const std::vector<CorpusBlock>& corpus, JobControl& job,
                Json* device) {
  ASSIGN_OR_RETURN(const std::unique_ptr<PluginSession> session,
                   PluginSession::Open(plugin, device->at("number").get<int>(), kSlots));
  job.Begin("decoding awkward blocks", 0);
  ASSIGN_OR_RETURN(const DeviceVerdict verdict, VerifyDevice(*session, corpus));
  (*device)["verified"] = {{"blocks", verdict.blocks}, {"bytes", verdict.bytes}, {"wrong", verdict.wrong}};
  WorkerPool pool;
  Json speeds = Json::array();
  for (const std::string codec : {"self", "delta", "compact"}) {
    RETURN_IF_ERROR(job.Check());
    job.Begin("measuring " + codec, 0);
    ASSIGN_OR_RETURN(const DeviceSpeed speed, MeasureDevice(*session, OrdinaryBlocks(codec, kMeasuredBytes), pool));
    speeds.push_back({{"codec", codec},
                      {"end_to_end_bytes_per_second", Whole(speed.device)},
                      {"kernel_bytes_per_second", Whole(speed.kernels)},
                      {"cpu_bytes_per_second", Whole(speed.cpu)},
                      {"upload_bytes_per_second", Whole(speed.upload)},
                      {"download_bytes_per_second", Whole(speed.download)}});
  }
  (*device)["speeds"] = std::move(speeds);
  return OkStatus();
}

Result<Outcome> RunDoctor(Session& session, const Arguments& arguments) {
  const bool verify = arguments.Has("--gpu-verify");
  Json document;
  document["version"] = MODELSTORE_VERSION;
  document["decoder"] = CpuTargetName(CurrentCpuTarget());
  document["threads"] = std::thread::hardware_concurrency();
  document["fuse"] = access("/dev/fuse", R_OK | W_OK) == 0;
  ASSIGN_OR_RETURN(const std::string given, HomeExpanded(arguments.Value("--plugin")));
  const std::string path = given.empty() ? Plugin::DefaultPath() : given;
  Json gpu = {{"plugin", path.empty() ? Json(nullptr) : Json(path)}, {"reason", nullptr}, {"devices", Json::array()}};
  bool is_right = true;
  const auto examine = [&]() -> Status {
    if (path.empty()) return NotFound("the GPU plug-in is not installed (docs/gpu.md)");
    ASSIGN_OR_RETURN(const std::shared_ptr<const Plugin> plugin, Plugin::Load(path));
    ASSIGN_OR_RETURN(const std::vector<DeviceInfo> devices, plugin->Devices());
    for (size_t i = 0; i < devices.size(); ++i) gpu["devices"].push_back(DescribeDevice(i, devices[i]));
    if (!verify) return OkStatus();
    const std::vector<CorpusBlock> corpus = AwkwardBlocks();
    return session
        .RunJob([&](JobControl& job) -> Result<std::string> {
          for (Json& device : gpu["devices"]) {
            RETURN_IF_ERROR(VerifyOn(plugin, corpus, job, &device));
            is_right = is_right && device["verified"]["wrong"].empty();
          }
          return std::string();
        })
        .status();
  };
  const Status examined = examine();
  // Without --gpu-verify nobody asked for a GPU.
  if (!examined.ok() && verify) return examined;
  if (!examined.ok()) gpu["reason"] = std::string(examined.message());
  document["gpu"] = std::move(gpu);
  Outcome out;
  out.document = JsonText(document);
  out.text = RenderDoctor(out.document, session.style());
  // It is the device that is wrong, not a store.
  if (!is_right) out.exit_code = StatusCodeExit(StatusCode::kIo);
  return out;
}

std::string Rate(const Json& speed, const char* key) { return HumanBytes(speed.at(key).get<uint64_t>()) + "/s"; }

}  // namespace

CommandSpec DoctorCommand() {
  return {
      .name = "doctor",
      .summary = "what of this machine modelstore uses; whether its GPUs decode rightly, and how fast",
      .positionals = {},
      .options = {{"--gpu-verify", "", "decode awkward blocks on every GPU, compare with the CPU, and measure both"},
                  {"--plugin", "FILE", "the GPU plug-in (default: where it is installed)"}},
      .run = RunDoctor};
}

std::string RenderDoctor(std::string_view document, const Style& style) {
  const Json doctor = ParseOrderedJson(document);
  std::string out = Painted("modelstore", Tone::kBold, style) + " " + doctor.at("version").get<std::string>() + "\n";
  const auto field = [&](std::string_view label, const std::string& value) {
    out += "  " + Painted(label, Tone::kDim, style) + std::string(10 - label.size(), ' ') + value + "\n";
  };
  field("decoder", doctor.at("decoder").get<std::string>() + ", " + Plural(doctor.at("threads"), "thread"));
  field("mount", doctor.at("fuse") ? "/dev/fuse" : "not possible: /dev/fuse is not accessible");
  const Json& gpu = doctor.at("gpu");
  field("plug-in", gpu.at("plugin").is_string() ? Printable(gpu.at("plugin").get<std::string>()) : "none");
  if (gpu.at("reason").is_string()) field("gpu", Printable(gpu.at("reason").get<std::string>()));
  for (const Json& device : gpu.at("devices")) {
    field("gpu " + std::to_string(device.at("number").get<uint64_t>()),
          Printable(device.at("name").get<std::string>()) + ", " + HumanBytes(device.at("memory_bytes")) + ", " +
              Plural(device.at("multiprocessors"), "multiprocessor") + ", compute capability " +
              device.at("compute").get<std::string>());
    if (!device.contains("verified")) continue;
    const Json& verified = device.at("verified");
    field("", Plural(verified.at("blocks"), "block") + ", " + HumanBytes(verified.at("bytes")) + " decoded: " +
                  (verified.at("wrong").empty() ? std::string("all as on the CPU")
                                                : std::to_string(verified.at("wrong").size()) + " WRONG"));
    for (const Json& wrong : verified.at("wrong")) field("", "  " + Printable(wrong.get<std::string>()));
    for (const Json& speed : device.at("speeds"))
      field("", speed.at("codec").get<std::string>() + ": kernels " + Rate(speed, "kernel_bytes_per_second") +
                    ", memory to memory " + Rate(speed, "end_to_end_bytes_per_second") + ", CPU " +
                    Rate(speed, "cpu_bytes_per_second") + "; up " + Rate(speed, "upload_bytes_per_second") + ", down " +
                    Rate(speed, "download_bytes_per_second"));
  }
  return out;
}

}  // namespace modelstore
