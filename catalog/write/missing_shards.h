// Checkpoints of which files are missing (layer: catalog/write; private).
#pragma once

#include <set>
#include <string>

#include "catalog/write/push.h"
#include "codec/support/job_control.h"

namespace modelstore {

// Warns of files that an index of the source names and that the source has not, as after a download that broke off, and
// of indexes that cannot be read. Errors: Io.
Status WarnOfMissingShards(const SourceTree& source, JobControl& job);

// For messages: "a, b, c, d, e and 3 more".
std::string ShortList(const std::set<std::string>& names);

}  // namespace modelstore
