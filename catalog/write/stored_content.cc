#include "catalog/write/stored_content.h"

#include <sys/xattr.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <string>
#include <utility>

#include "catalog/schema/xattrs.h"

namespace modelstore {
namespace {

class StoredContent : public SourceContent {
 public:
  StoredContent(Catalog& catalog, FileRef file) : catalog_(catalog), file_(std::move(file)) {}
  Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    ASSIGN_OR_RETURN(const size_t read, catalog_.reader().Read(file_, offset, out));
    return read == out.size() ? OkStatus() : Corruption("the stored file ends early");
  }

 private:
  Catalog& catalog_;
  const FileRef file_;  // keeps prune from what it needs
};

}  // namespace

Status UseStoredFile(Catalog& catalog, const Sha256Digest& sha256, SourceFile* source) {
  ASSIGN_OR_RETURN(FileRef file, catalog.reader().OpenFileByHash(sha256));
  source->bytes = file->bytes();
  source->stored = sha256;
  source->content = std::make_shared<StoredContent>(catalog, std::move(file));
  return OkStatus();
}

Result<Sha256Digest> MountedSha256(int fd) {
  Sha256Digest digest;
  char text[2 * sizeof digest];
  const ssize_t n = fgetxattr(fd, kSha256Xattr.data(), text, sizeof text);
  if (n < 0) return StatusFromErrno(errno, "asking the mount which file it is");
  for (size_t i = 0; i < digest.size(); ++i) {
    uint8_t byte = 0;
    const char* const end = text + 2 * i + 2;
    if (n != sizeof text || std::from_chars(text + 2 * i, end, byte, 16).ptr != end)
      return IoError("the mount does not say which file it is");
    digest[i] = std::byte{byte};
  }
  return digest;
}

Result<SourceTree> SourceTree::OfModel(Catalog& catalog, const ModelRecord& model) {
  SourceTree tree;
  tree.default_name_ = model.name;
  for (const ModelFile& file : model.files) {
    SourceFile& added = tree.files_.emplace_back();
    added.path = file.path;
    added.shown_as = model.name + "/" + file.path;
    RETURN_IF_ERROR(UseStoredFile(catalog, file.sha256, &added));
    added.mode = file.mode;
    added.gid = file.gid;
    added.mtime_ns = file.mtime_ns;
  }
  return tree;
}

}  // namespace modelstore
