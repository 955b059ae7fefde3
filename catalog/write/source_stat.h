// What a push remembers of a source file's attributes (layer: catalog/write; private).
#pragma once

#include <sys/stat.h>

#include <cstdint>

namespace modelstore {

inline int64_t ModificationTime(const struct stat& st) {
  return int64_t{st.st_mtim.tv_sec} * 1'000'000'000 + st.st_mtim.tv_nsec;
}

inline int64_t ChangeTime(const struct stat& st) {
  return int64_t{st.st_ctim.tv_sec} * 1'000'000'000 + st.st_ctim.tv_nsec;
}

}  // namespace modelstore
