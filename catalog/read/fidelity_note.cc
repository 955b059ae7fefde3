#include "catalog/read/fidelity_note.h"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "codec/support/hash.h"

namespace modelstore {

std::optional<FidelityNote> MakeFidelityNote(const ModelRecord& model, std::string_view base) {
  if (model.fidelity != Fidelity::kCompact) return std::nullopt;
  if (std::any_of(model.files.begin(), model.files.end(),
                  [](const ModelFile& file) { return file.path == kFidelityFile; }))
    return std::nullopt;
  char drift[64], date[32];
  std::snprintf(drift, sizeof drift, "%.4g (%s)", model.drift,
                model.drift_kind == DriftKind::kMoments ? "moments" : "plain");
  const std::time_t seconds = ToTimespec(model.created_ns).tv_sec;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  if (std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0) date[0] = '\0';

  FidelityNote note;
  note.text =
      "These files are a compact copy, not the original: modelstore kept a pruned, quantized part of what makes\n"
      "this model differ from its base. They are the same bytes at every export.\n\n"
      "model:  " +
      model.name + (model.derived ? "\nsource: " : "\nbase:   ") + std::string(base) +
      (model.derived ? "\nrecipe: " : "\nmethod: ") + model.method + "\ndrift:  " + drift +
      (model.derived ? " of the source" : "") + ", 0 is the original and 1 is the base\nmade:   " + date + "\n";
  note.file.path = kFidelityFile;
  note.file.bytes = note.text.size();
  note.file.mtime_ns = model.created_ns;
  Sha256 sha256;
  sha256.Update(AsBytes(note.text));
  note.file.sha256 = sha256.Finish();
  // Who may read all other files may read what they are.
  if (!model.files.empty()) note.file.gid = model.files.front().gid;
  for (const ModelFile& file : model.files) {
    note.file.mode &= file.mode;
    if (file.gid != note.file.gid) note.file.mode &= ~uint32_t{0070};
  }
  return note;
}

}  // namespace modelstore
