#include "cli/mount_view.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "catalog/schema/records.h"
#include "catalog/schema/xattrs.h"
#include "cli/session.h"
#include "codec/json/json_text.h"

namespace modelstore {

Result<uint64_t> MountedFile::Bytes() const {
  struct stat st;
  if (fstat(fd_.get(), &st) != 0) return StatusFromErrno(errno, "reading the attributes of a mounted file");
  if (!S_ISREG(st.st_mode)) return Unsupported("what the mount shows is not a regular file");
  return static_cast<uint64_t>(st.st_size);
}

Result<std::string> MountedFile::Sha256() const {
  char text[65];
  const ssize_t n = fgetxattr(fd_.get(), kSha256Xattr.data(), text, sizeof text);
  if (n < 0) return StatusFromErrno(errno, "reading " + std::string(kSha256Xattr) + " of a mounted file");
  return std::string(text, static_cast<size_t>(n));
}

Result<MountView> MountView::Find(Session& session) {
  ASSIGN_OR_RETURN(const std::string document, session.Call("status", {}));
  const auto status = TryParseJson(document);
  const auto mount = status.is_object() ? status.find("mount") : status.end();
  const std::string path = mount != status.end() && mount->is_string() ? mount->get<std::string>() : "";
  if (!path.starts_with('/')) return Unavailable("the daemon has no mount; its configuration ('mount') gives it one");
  return At(path);
}

Result<MountView> MountView::At(const std::string& path) {
  const auto invisible = [&](const std::string& found) {
    return Unavailable("the daemon's mount " + path + " cannot be seen from here (" + found +
                       "): is this another container or mount namespace? Bind " + path + " into it");
  };
  UniqueFd root(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.ok()) {
    if (errno == ENOENT || errno == ENOTDIR) return invisible("there is no such folder");
    return StatusFromErrno(errno, "opening the daemon's mount " + path);
  }
  struct statfs system;
  struct stat st;
  if (fstatfs(root.get(), &system) != 0 || fstat(root.get(), &st) != 0)
    return StatusFromErrno(errno, "looking at the daemon's mount " + path);
  if (system.f_type != FUSE_SUPER_MAGIC) return invisible("the folder is not a mount");
  return MountView(path, std::move(root), st.st_dev);
}

Result<MountedFile> MountView::Open(const std::string& model, const std::string& file) const {
  // The mount has no links: a path of good names stays below its root.
  RETURN_IF_ERROR(CheckModelName(model));
  RETURN_IF_ERROR(CheckFilePath(file));
  const std::string path = model + "/" + file;
  UniqueFd fd(openat(root_.get(), path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.ok()) return StatusFromErrno(errno, "opening " + path_ + "/" + path);
  return MountedFile(std::move(fd));
}

}  // namespace modelstore
