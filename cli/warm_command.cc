#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "cli/commands.h"
#include "cli/mount_view.h"
#include "cli/session.h"
#include "codec/json/json_text.h"
#include "codec/support/bytes.h"
#include "codec/support/guarded.h"
#include "codec/support/mutex.h"
#include "codec/support/thread.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kReadBytes = 1u << 20;
// What one thread reads in a row: long enough for the kernel to read ahead, short enough to share a file out.
constexpr uint64_t kRegionBytes = 64u << 20;
constexpr unsigned kMaxThreads = 4;

struct Region {
  std::string file;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Reads the regions on a few threads; each takes the next one.
class Reading {
 public:
  Reading(const MountView& mount, const std::string& model, const std::vector<Region>& regions, JobControl& job)
      : mount_(mount), model_(model), regions_(regions), job_(job) {}

  Status Run() {
    const unsigned cores = std::max(2u, std::thread::hardware_concurrency());
    const size_t threads = std::min<size_t>({cores, kMaxThreads, regions_.size()});
    std::vector<Thread> workers;
    while (workers.size() + 1 < threads) {
      Result<Thread> worker = Thread::Start([this] { Work(); });
      if (!worker.ok()) break;  // those that the system granted must do
      workers.push_back(*std::move(worker));
    }
    Work();
    workers.clear();  // joins
    const MutexLock lock(mutex_);
    return failure_;
  }

 private:
  void Work() {
    const Status status = Guarded([this] { return ReadInTurn(); });
    if (status.ok()) return;
    const MutexLock lock(mutex_);
    if (failure_.ok()) failure_ = status;
    failed_ = true;
  }

  Status ReadInTurn() {
    std::vector<std::byte> buffer(kReadBytes);
    for (size_t i = next_++; i < regions_.size() && !failed_; i = next_++) RETURN_IF_ERROR(Read(regions_[i], buffer));
    return OkStatus();
  }

  Status Read(const Region& region, MutableByteSpan buffer) {
    // A descriptor of its own: the kernel's read-ahead follows one reader each.
    ASSIGN_OR_RETURN(const MountedFile file, mount_.Open(model_, region.file));
    const std::string shown = mount_.path() + "/" + model_ + "/" + region.file;
    for (uint64_t done = 0; done < region.bytes && !failed_;) {
      RETURN_IF_ERROR(job_.Check());
      const size_t want = std::min<uint64_t>(buffer.size(), region.bytes - done);
      const ssize_t n = pread(file.descriptor(), buffer.data(), want, static_cast<off_t>(region.offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return StatusFromErrno(errno, "reading " + shown);
      if (n == 0)
        return IoError(shown + " ended at " + std::to_string(region.offset + done) + " bytes; it was replaced");
      done += static_cast<size_t>(n);
      job_.Advance(static_cast<size_t>(n));
    }
    return OkStatus();
  }

  const MountView& mount_;
  const std::string& model_;
  const std::vector<Region>& regions_;
  JobControl& job_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  Mutex mutex_;
  Status failure_ MS_GUARDED_BY(mutex_);
};

Result<Outcome> RunWarm(Session& session, const Arguments& arguments) {
  const std::string& name = arguments.positionals[0];
  if (!session.through_daemon())
    return InvalidArgument("warm reads through the daemon's mount: leave out --store and MODELSTORE_STORE");
  ASSIGN_OR_RETURN(const std::string shown, session.Call("show", {{"name", name}}));
  ASSIGN_OR_RETURN(const MountView mount, MountView::Find(session));

  const auto model = ParseJson(shown);
  std::vector<Region> regions;
  uint64_t total_bytes = 0;
  for (const auto& file : model.at("files")) {
    const uint64_t bytes = file.at("logical_bytes");
    total_bytes += bytes;
    for (uint64_t offset = 0; offset < bytes; offset += kRegionBytes)
      regions.push_back({file.at("path"), offset, std::min(kRegionBytes, bytes - offset)});
  }
  const auto start = std::chrono::steady_clock::now();
  Outcome out;
  const auto warm = [&](JobControl& job) -> Result<std::string> {
    job.Begin("warming", total_bytes);
    RETURN_IF_ERROR(Reading(mount, name, regions, job).Run());
    Json document;
    document["name"] = name;
    document["files"] = model.at("files").size();
    document["bytes"] = total_bytes;
    document["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return JsonText(document);
  };
  // A read of the mount waits for the daemon whatever a handler says: only a signal that ends the process ends it.
  ASSIGN_OR_RETURN(out.document, session.RunJob(warm, Session::Signals::kEnd));
  if (!session.options().quiet) out.text = RenderWarm(out.document, session.style());
  return out;
}

}  // namespace

CommandSpec WarmCommand() {
  return {.name = "warm",
          .summary = "read a model through the daemon's mount, so that its next reader finds it in memory",
          .positionals = {{"NAME", "the model"}},
          .options = {},
          .run = RunWarm};
}

std::string RenderWarm(std::string_view document, const Style& style) {
  const auto report = ParseJson(document);
  const uint64_t bytes = report.at("bytes");
  const double seconds = report.at("seconds");
  std::string out = "warmed " + Painted(Printable(report.at("name").get<std::string>()), Tone::kBold, style) + ": " +
                    Plural(report.at("files"), "file") + ", " + HumanBytes(bytes) + ", " + HumanSeconds(seconds);
  if (bytes != 0 && seconds > 0)
    out += " (" + HumanBytes(static_cast<uint64_t>(static_cast<double>(bytes) / seconds)) + "/s)";
  return out + "\n";
}

}  // namespace modelstore
