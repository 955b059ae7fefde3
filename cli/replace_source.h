// `push --replace-source`: links into the daemon's mount take the place of what was pushed (layer: cli). Stateless.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "catalog/write/push.h"
#include "cli/mount_view.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

struct ReplaceReport {
  struct Left {
    std::string path;  // as the user knows it
    std::string reason;
  };
  uint64_t files = 0;
  uint64_t bytes = 0;
  std::vector<Left> left;  // as they were; without what is on the mount already
};

// Replaces every file of `source`, which was just stored as `model`, by a link to the mounted file: atomically, and
// only when the bytes that the source has now are those that the mount shows, nobody has it open for writing, it has
// one name, it is this user's or everyone may read it, and it did not change since it was scanned. A version that is
// renamed into its place meanwhile stays. What is a link already keeps being one; the file at its end is replaced,
// once. Whatever cannot be replaced is left as it is, with a warning that says why. Uses the rights of this process.
// Errors: Cancelled (what was replaced stays replaced; nothing is left half done).
Result<ReplaceReport> ReplaceSource(const SourceTree& source, const std::string& model, const MountView& mount,
                                    JobControl& job);

}  // namespace modelstore
