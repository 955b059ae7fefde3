// bench_null_fuse MOUNTPOINT [BYTES]: the limit that a FUSE mount can reach on this machine. Serves one file, `data`,
// of synthetic bytes straight from memory through the session that the real mount uses. Ends when unmounted or on
// SIGINT.
#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 12)
#include <fuse_lowlevel.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fuse/fuse_session.h"
#include "fuse/mount_table.h"

namespace {

constexpr fuse_ino_t kData = 2;
constexpr double kForeverSeconds = 1e9;
constexpr const char* kName = "data";

uint64_t file_bytes = 1ull << 30;
std::vector<char> payload;  // what every read answers

modelstore::FuseSession* serving = nullptr;

struct stat StatOf(fuse_ino_t id) {
  struct stat st {};
  st.st_ino = id;
  st.st_nlink = 1;
  st.st_mode = id == kData ? S_IFREG | 0444 : S_IFDIR | 0555;
  st.st_size = id == kData ? static_cast<off_t>(file_bytes) : 0;
  return st;
}

void Lookup(fuse_req_t request, fuse_ino_t, const char* name) {
  if (std::strcmp(name, kName) != 0) {
    fuse_reply_err(request, ENOENT);
    return;
  }
  fuse_entry_param entry{};
  entry.ino = kData;
  entry.attr = StatOf(kData);
  entry.attr_timeout = entry.entry_timeout = kForeverSeconds;
  fuse_reply_entry(request, &entry);
}

void GetAttr(fuse_req_t request, fuse_ino_t id, fuse_file_info*) {
  const struct stat st = StatOf(id);
  fuse_reply_attr(request, &st, kForeverSeconds);
}

void Open(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
  info->keep_cache = 1;
  info->noflush = 1;
  fuse_reply_open(request, info);
}

void Read(fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info*) {
  const uint64_t left = file_bytes - std::min<uint64_t>(file_bytes, static_cast<uint64_t>(offset));
  fuse_reply_buf(request, payload.data(), std::min<uint64_t>({size, left, payload.size()}));
}

void HandleSignal(int) { serving->RequestStop(); }

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: %s MOUNTPOINT [BYTES]\n", argv[0]);
    return 2;
  }
  if (argc == 3) file_bytes = std::strtoull(argv[2], nullptr, 10);
  payload.resize(4 << 20);
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(i * 2654435761u >> 13);

  fuse_lowlevel_ops ops{};
  ops.lookup = Lookup;
  ops.getattr = GetAttr;
  ops.open = Open;
  ops.read = Read;
  modelstore::FuseSessionOptions options;
  const auto mountpoint = modelstore::ResolveMountpoint(argv[1]);
  if (mountpoint.ok()) options.mountpoint = *mountpoint;
  auto session = mountpoint.ok() ? modelstore::FuseSession::Start(ops, nullptr, options) : mountpoint.status();
  if (!session.ok()) {
    std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
    return 1;
  }
  serving = session->get();
  struct sigaction action {};
  action.sa_handler = HandleSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::printf("serving %llu bytes at %s/%s, read-ahead %u KiB\n", static_cast<unsigned long long>(file_bytes),
              options.mountpoint.c_str(), kName, serving->read_ahead_kb());
  std::fflush(stdout);
  serving->Wait();
  return serving->Stop().ok() ? 0 : 1;
}
