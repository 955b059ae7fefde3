#include "catalog/store/hooked_env.h"

#include <rocksdb/file_system.h>
#include <rocksdb/system_clock.h>

#include <algorithm>
#include <string>
#include <utility>

namespace modelstore {
namespace {

using rocksdb::DataVerificationInfo;
using rocksdb::FileOptions;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

using Hook = std::function<Status(uint64_t)>;

IOStatus Ask(const Hook& hook, uint64_t bytes) {
  const Status status = hook(bytes);
  if (status.ok()) return IOStatus::OK();
  const std::string message(status.message());
  return status.code() == StatusCode::kNoSpace ? IOStatus::NoSpace(message) : IOStatus::IOError(message);
}

class HookedFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  HookedFile(std::unique_ptr<FSWritableFile>&& target, const Hook& hook)
      : FSWritableFileOwnerWrapper(std::move(target)), hook_(hook) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, data.size());
    return s.ok() ? target()->Append(data, options, dbg) : s;
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const DataVerificationInfo& info,
                  IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, data.size());
    return s.ok() ? target()->Append(data, options, info, dbg) : s;
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, data.size());
    return s.ok() ? target()->PositionedAppend(data, offset, options, dbg) : s;
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            const DataVerificationInfo& info, IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, data.size());
    return s.ok() ? target()->PositionedAppend(data, offset, options, info, dbg) : s;
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, 0);
    return s.ok() ? target()->Truncate(size, options, dbg) : s;
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, 0);
    return s.ok() ? target()->Sync(options, dbg) : s;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, 0);
    return s.ok() ? target()->Fsync(options, dbg) : s;
  }
  IOStatus Close(const IOOptions& options, IODebugContext* dbg) override {
    // The descriptor is closed in any case: a failing close of the kernel does so too.
    const IOStatus asked = Ask(hook_, 0);
    const IOStatus closed = target()->Close(options, dbg);
    return asked.ok() ? closed : asked;
  }

 private:
  const Hook& hook_;  // the file system's, which outlives its files
};

class HookedFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  HookedFileSystem(const std::shared_ptr<rocksdb::FileSystem>& base, Hook hook)
      : FileSystemWrapper(base), hook_(std::move(hook)) {}

  const char* Name() const override { return "modelstore.HookedFileSystem"; }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options, std::unique_ptr<FSWritableFile>* result,
                           IODebugContext* dbg) override {
    return Wrap(target()->NewWritableFile(name, options, result, dbg), result);
  }
  IOStatus ReopenWritableFile(const std::string& name, const FileOptions& options,
                              std::unique_ptr<FSWritableFile>* result, IODebugContext* dbg) override {
    return Wrap(target()->ReopenWritableFile(name, options, result, dbg), result);
  }
  IOStatus ReuseWritableFile(const std::string& name, const std::string& old_name, const FileOptions& options,
                             std::unique_ptr<FSWritableFile>* result, IODebugContext* dbg) override {
    return Wrap(target()->ReuseWritableFile(name, old_name, options, result, dbg), result);
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* dbg) override {
    const IOStatus s = Ask(hook_, 0);
    return s.ok() ? target()->RenameFile(from, to, options, dbg) : s;
  }

 private:
  IOStatus Wrap(const IOStatus& opened, std::unique_ptr<FSWritableFile>* result) const {
    if (opened.ok()) *result = std::make_unique<HookedFile>(std::move(*result), hook_);
    return opened;
  }

  const Hook hook_;
};

class QuickClock final : public rocksdb::SystemClockWrapper {
 public:
  QuickClock() : SystemClockWrapper(rocksdb::SystemClock::Default()) {}
  const char* Name() const override { return "modelstore.QuickClock"; }
  void SleepForMicroseconds(int micros) override { SystemClockWrapper::SleepForMicroseconds(std::min(micros, 1000)); }
};

class HookedEnv final : public rocksdb::EnvWrapper {
 public:
  explicit HookedEnv(Hook hook) : EnvWrapper(rocksdb::Env::Default()) {
    file_system_ = std::make_shared<HookedFileSystem>(rocksdb::FileSystem::Default(), std::move(hook));
    system_clock_ = std::make_shared<QuickClock>();
  }
  const char* Name() const override { return "modelstore.HookedEnv"; }
};

}  // namespace

std::unique_ptr<rocksdb::Env> NewHookedEnv(std::function<Status(uint64_t)> before_write) {
  return std::make_unique<HookedEnv>(std::move(before_write));
}

}  // namespace modelstore
