#include "daemon/service/socket_listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "codec/support/files.h"
#include "codec/support/unique_fd.h"

namespace modelstore {
namespace {

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return InvalidArgument("the socket's path " + path + " has " + std::to_string(path.size()) +
                           " bytes; the system allows " + std::to_string(sizeof address.sun_path - 1));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* Pointer(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

// Removes what a killed daemon left.
Status ClearWay(const std::string& path, const sockaddr_un& address) {
  struct stat found;
  if (lstat(path.c_str(), &found) != 0)
    return errno == ENOENT ? OkStatus() : StatusFromErrno(errno, "looking at " + path);
  if (!S_ISSOCK(found.st_mode))
    return AlreadyExists(path + " is there and is not a socket; remove it or choose another path for the socket");
  const UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.ok()) return StatusFromErrno(errno, "creating a socket");
  // EAGAIN: somebody listens and has a full queue.
  if (connect(probe.get(), Pointer(address), sizeof address) == 0 || errno == EAGAIN)
    return Busy("a daemon listens on " + path + " already; stop it or choose another path for the socket");
  if (errno != ECONNREFUSED) return StatusFromErrno(errno, "connecting to the socket " + path + " that is there");
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return StatusFromErrno(errno, "removing the old socket " + path);
  return OkStatus();
}

// -1: systemd passed none.
Result<int> FromSystemd() {
  const int passed = sd_listen_fds(/*unset_environment=*/1);
  if (passed < 0) return StatusFromErrno(-passed, "taking the socket from systemd");
  if (passed == 0) return -1;
  if (passed > 1) return InvalidArgument("systemd passed " + std::to_string(passed) + " sockets; one is expected");
  if (sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_STREAM, /*listening=*/1, nullptr, 0) <= 0)
    return InvalidArgument("systemd passed a socket that is not a listening Unix stream socket");
  return SD_LISTEN_FDS_START;
}

}  // namespace

Result<std::unique_ptr<SocketListener>> SocketListener::Open(const std::string& path) {
  ASSIGN_OR_RETURN(const int passed, FromSystemd());
  if (passed >= 0) {
    if (fcntl(passed, F_SETFL, fcntl(passed, F_GETFL) | O_NONBLOCK) != 0)
      return StatusFromErrno(errno, "setting up the socket from systemd");
    return std::unique_ptr<SocketListener>(new SocketListener(passed, path, /*made=*/false));
  }
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  const bool root = geteuid() == 0;
  RETURN_IF_ERROR(MakeFolders(std::filesystem::path(path).parent_path(), root ? 0755 : 0700)
                      .WithContext("making a place for the socket " + path));
  RETURN_IF_ERROR(ClearWay(path, address));
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return StatusFromErrno(errno, "creating a socket");
  const mode_t before = umask(root ? 0111 : 0177);
  const int bound = bind(fd.get(), Pointer(address), sizeof address);
  const int error = errno;
  umask(before);
  if (bound != 0) return StatusFromErrno(error, "creating the socket " + path);
  std::unique_ptr<SocketListener> listener(new SocketListener(fd.Release(), path, /*made=*/true));
  struct stat made;
  if (lstat(path.c_str(), &made) != 0) return StatusFromErrno(errno, "looking at the socket " + path);
  listener->device_ = made.st_dev;
  listener->inode_ = made.st_ino;
  if (listen(listener->fd(), SOMAXCONN) != 0) return StatusFromErrno(errno, "listening on " + path);
  return listener;
}

SocketListener::~SocketListener() {
  close(fd_);
  struct stat now;
  if (made_ && lstat(path_.c_str(), &now) == 0 && now.st_dev == device_ && now.st_ino == inode_) unlink(path_.c_str());
}

Result<int> SocketListener::Accept() const {
  const int fd = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd >= 0) return fd;
  // A client that gave up before its turn is no failure either.
  if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return Busy("no client waits");
  return StatusFromErrno(errno, "accepting a client");
}

}  // namespace modelstore
