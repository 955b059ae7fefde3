#include "catalog/write/export.h"

#include <sys/stat.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "catalog/read/fidelity_note.h"
#include "catalog/write/file_reader.h"

namespace modelstore {
namespace {

bool AllMayRead(const ModelFile& file) {
  constexpr uint32_t kAll = S_IRGRP | S_IROTH;
  return (file.mode & kAll) == kAll;
}

// How the note speaks of the model's base. Others than the caller will read it: what not all may see is not named.
std::string BaseInNote(const Catalog& catalog, const ModelRecord& model) {
  if (const std::optional<ModelEntry> entry = catalog.FindById(model.base)) {
    const Result<ModelRecord> base = catalog.FindModel(entry->name);
    if (base.ok() && base->id == model.base && std::ranges::all_of(base->files, AllMayRead)) return base->name;
  }
  return std::string(kBaseElsewhere);
}

}  // namespace

Result<ExportReport> Export(Catalog& catalog, const std::string& name,
                            const std::function<Status(const ModelRecord&, const ModelFile&)>& may_read,
                            ExportSink& sink, JobControl& job) {
  // Files that are open stay readable whatever is removed and pruned: a sink may take as long as it likes, and nothing
  // waits for it.
  std::vector<FileRef> open;
  ModelRecord model;
  {
    ASSIGN_OR_RETURN(const CollectGate::Hold keep, catalog.collect_gate().Share(job));
    ASSIGN_OR_RETURN(model, catalog.FindModel(name));
    for (const ModelFile& file : model.files) {
      RETURN_IF_ERROR(CheckFilePath(file.path));
      if (may_read) RETURN_IF_ERROR(may_read(model, file));
    }
    for (const ModelFile& file : model.files) {
      Result<FileRef> opened = catalog.reader().OpenFileByHash(file.sha256);
      RETURN_IF_ERROR(opened.status().WithContext(name + "/" + file.path));
      open.push_back(std::move(opened).value());
    }
  }
  const std::optional<FidelityNote> note = MakeFidelityNote(model, BaseInNote(catalog, model));
  std::vector<ModelFile> files = model.files;
  if (note) files.push_back(note->file);
  sink.on_warning = [&job](std::string message) { job.Warn(std::move(message)); };
  RETURN_IF_ERROR(sink.Begin(files));
  job.Begin("writing", model.logical_bytes);
  ExportReport report;
  for (size_t i = 0; i < model.files.size(); ++i) {
    const ModelFile& file = model.files[i];
    RETURN_IF_ERROR(sink.BeginFile(i));
    RETURN_IF_ERROR(ReadWholeFile(catalog, file.sha256, job, [&](ByteSpan bytes) {
                      return sink.Write(bytes);
                    }).WithContext(name + "/" + file.path));
    RETURN_IF_ERROR(sink.EndFile());
    report.files += 1;
    report.bytes += file.bytes;
  }
  if (note) {
    RETURN_IF_ERROR(sink.BeginFile(model.files.size()));
    RETURN_IF_ERROR(sink.Write(AsBytes(note->text)));
    RETURN_IF_ERROR(sink.EndFile());
  }
  return report;
}

}  // namespace modelstore
