// StoreFolder: the folder of a store around RocksDB's own files (layer: catalog/store; private to it).
//
//   DIR/lock     flock'd while a process has the store open (exclusive, or shared by readers); names the holder
//   DIR/db/      RocksDB
//   DIR/ballast  allocated space that is given up when the disk is full, so that space can be freed at all
//
// Not thread-safe, except that the ballast, FreeBytes and DiskBytes may be called from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "catalog/store/kv_store.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"
#include "codec/support/unique_fd.h"

namespace modelstore {

class StoreFolder {
 public:
  // Creates or recognises the folder and takes its lock. Errors: as OpenRocksStore.
  static Result<std::unique_ptr<StoreFolder>> Open(const std::string& dir, const StoreOptions& options);
  StoreFolder(const StoreFolder&) = delete;
  StoreFolder& operator=(const StoreFolder&) = delete;

  const std::string& dir() const { return dir_; }
  std::string db_dir() const { return dir_ + "/db"; }
  // True when RocksDB has finished creating its files there.
  bool has_db() const { return has_db_; }

  // st_blocks of the folder and everything below it.
  Result<uint64_t> DiskBytes() const;

  // What this process may still write to the folder's file system.
  Result<uint64_t> FreeBytes() const;

  // Makes the ballast as large as the store warrants, if the disk is far from full. Not an error otherwise: the store
  // works without, and the next call tries again.
  void RefillBallast();
  // False when there was none to give up.
  bool ReleaseBallast();

 private:
  StoreFolder(std::string dir, UniqueFd lock)
      : dir_(std::move(dir)), lock_(std::move(lock)), ballast_path_(dir_ + "/ballast") {}

  const std::string dir_;
  const UniqueFd lock_;  // none: read-only, and the file system let us take no lock
  bool has_db_ = false;
  Mutex ballast_mutex_;
  const std::string ballast_path_ MS_GUARDED_BY(ballast_mutex_);  // the file there
};

}  // namespace modelstore
