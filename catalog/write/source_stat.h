// What a push remembers of a source file's attributes (layer: catalog/write; private).
#pragma once

#include <sys/stat.h>

#include "codec/support/clock.h"

namespace modelstore {

inline TimeNs ModificationTime(const struct stat& st) { return ToTimeNs(st.st_mtim); }
inline TimeNs ChangeTime(const struct stat& st) { return ToTimeNs(st.st_ctim); }

}  // namespace modelstore
