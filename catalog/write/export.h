// Export: a model's files as plain files again (layer: catalog/write).
//
// The engine decodes and checks; a sink writes. The sink of the command line (folder_sink.h) writes below a folder with
// the rights of its own process, whether the engine runs in that process or behind the daemon's socket.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "catalog/read/catalog.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

// The group of a file that comes from a daemon with other ids than this process's; no group has this id.
inline constexpr uint32_t kUnknownGroup = UINT32_MAX;

// Where an export goes. Calls come from one thread, in this order: Begin once, then for each file in order BeginFile,
// Write any number of times, EndFile. After a failure none follows.
class ExportSink {
 public:
  virtual ~ExportSink() = default;
  // All files that will come, before anything is decoded: an export that cannot be completed writes nothing.
  virtual Status Begin(const std::vector<ModelFile>& files) = 0;
  virtual Status BeginFile(size_t index) = 0;
  virtual Status Write(ByteSpan bytes) = 0;
  // All bytes of the file were written and their SHA-256 agrees: only now may it get its name.
  virtual Status EndFile() = 0;

  // For what is no failure; set by whoever makes the calls, for as long as they last.
  std::function<void(std::string)> on_warning;

 protected:
  void Warn(std::string message) {
    if (on_warning) on_warning(std::move(message));
  }
};

struct ExportReport {
  uint64_t files = 0, bytes = 0;
};
// Beside the files of a compact model it writes what they are (fidelity_note.h).
// `may_read` (may be null) is asked for each file before the first is decoded.
// Errors: NotFound, Corruption, Io, Cancelled, what `may_read` and the sink answer.
Result<ExportReport> Export(Catalog& catalog, const std::string& name,
                            const std::function<Status(const ModelRecord&, const ModelFile&)>& may_read,
                            ExportSink& sink, JobControl& job);

}  // namespace modelstore
