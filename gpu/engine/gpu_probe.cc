#include "gpu/engine/gpu_probe.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <thread>

#include "codec/support/unique_fd.h"
#include "gpu/engine/device_check.h"

extern char** environ;

namespace modelstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxSaidBytes = 4096;
constexpr const char* kGood = "good";
constexpr DeviceSlots kProbeSlots = {1, 8 << 20, 8 << 20, 8 << 20};

struct Pipe {
  UniqueFd reader, writer;
};

Result<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return StatusFromErrno(errno, "starting a check of the GPU");
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// What the child says until it closes its output, until `end`, or until it is to stop.
std::string Listen(int fd, Clock::time_point end, int stop_fd) {
  std::string said;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    pollfd polled[] = {{fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
    const int ready = left <= 0 ? 0 : poll(polled, 2, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready > 0 && polled[1].revents != 0) return said;
    char buffer[512];
    const ssize_t n = ready <= 0 ? 0 : read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return said;
    said.append(buffer, std::min(static_cast<size_t>(n), kMaxSaidBytes - std::min(kMaxSaidBytes, said.size())));
  }
}

// How the child ended; false: it did not, in time.
bool Wait(pid_t child, Clock::time_point end, int* status) {
  for (;;) {
    const pid_t ended = waitpid(child, status, WNOHANG);
    if (ended == child) return true;
    if (ended < 0 && errno == ECHILD) {
      // Who ignores SIGCHLD is not told: what the child said must do.
      *status = 0;
      return true;
    }
    if (ended < 0 && errno != EINTR) return false;
    if (Clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace

Status ProbeInChild(const std::vector<std::string>& command, const std::string& plugin, int device,
                    std::chrono::seconds limit, int stop_fd) {
  ASSIGN_OR_RETURN(Pipe pipe, MakePipe());
  std::vector<std::string> arguments = command;
  arguments.push_back(plugin);
  arguments.push_back(std::to_string(device));
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe.writer.get(), STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // The daemon's threads block signals; the child shall take them.
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t child = 0;
  const int error = posix_spawn(&child, pointers[0], &actions, &attributes, pointers.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return StatusFromErrno(error, "starting " + arguments[0]);
  pipe.writer.Reset();
  const Clock::time_point end = Clock::now() + limit;
  std::string said = Listen(pipe.reader.get(), end, stop_fd);
  pollfd stop = {stop_fd, POLLIN, 0};
  const bool is_stopping = poll(&stop, 1, 0) > 0;
  int status = 0;
  if (is_stopping || !Wait(child, end, &status)) {
    kill(child, SIGKILL);
    // One that hangs in the driver may not die now; init gets it later.
    Wait(child, Clock::now() + std::chrono::seconds(1), &status);
    if (is_stopping) return Cancelled("stopped while the GPU's driver started");
    return Unavailable("the GPU's driver did not answer within " + std::to_string(limit.count()) + " s");
  }
  while (!said.empty() && said.back() == '\n') said.pop_back();
  if (WIFSIGNALED(status))
    return Unavailable("the GPU's driver crashed (signal " + std::to_string(WTERMSIG(status)) + ")");
  if (WEXITSTATUS(status) != 0 || said != kGood) return Unavailable(said.empty() ? "the GPU's check failed" : said);
  return OkStatus();
}

Status CheckDevice(const std::string& plugin_path, int device) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const Plugin> plugin, Plugin::Load(plugin_path));
  ASSIGN_OR_RETURN(const std::vector<DeviceInfo> devices, plugin->Devices());
  if (device < 0 || static_cast<size_t>(device) >= devices.size())
    return Unavailable("there is no GPU " + std::to_string(device) + "; the driver lists " +
                       std::to_string(devices.size()));
  ASSIGN_OR_RETURN(const std::unique_ptr<PluginSession> session, PluginSession::Open(plugin, device, kProbeSlots));
  ASSIGN_OR_RETURN(const DeviceVerdict verdict, VerifyDevice(*session, AwkwardBlocks()));
  if (verdict.wrong.empty()) return OkStatus();
  return Unavailable("the GPU decodes wrongly (" + std::to_string(verdict.wrong.size()) + " of " +
                     std::to_string(verdict.blocks) + " blocks; " + verdict.wrong.front() + ")");
}

int ProbeMain(const std::string& plugin, const std::string& device) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // nobody else would end it if it hangs
  int number = -1;
  std::from_chars(device.data(), device.data() + device.size(), number);
  const Status status = CheckDevice(plugin, number);
  std::printf("%s\n", status.ok() ? kGood : std::string(status.message()).c_str());
  return std::fflush(stdout) == 0 && status.ok() ? 0 : 1;
}

}  // namespace modelstore
