#include "catalog/write/export.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <utility>

#include "catalog/write/file_reader.h"

namespace modelstore {
namespace {

// "" for an exact model.
Result<std::string> FidelityNote(const Catalog& catalog, const ModelRecord& model,
                                 const std::function<bool(const ModelRecord&)>& may_see) {
  if (model.fidelity != Fidelity::kCompact) return std::string();
  if (std::any_of(model.files.begin(), model.files.end(),
                  [](const ModelFile& file) { return file.path == kFidelityFile; }))
    return std::string();
  std::string base = "a model that is not shown here";
  if (const std::optional<ModelEntry> entry = catalog.FindById(model.base)) {
    const Result<ModelRecord> other = catalog.FindModel(entry->name);
    if (other.ok() && other->id == model.base && (!may_see || may_see(*other))) base = other->name;
  }
  char drift[64], date[32];
  std::snprintf(drift, sizeof drift, "%.4g (%s)", model.drift,
                model.drift_kind == DriftKind::kMoments ? "moments" : "plain");
  const std::time_t seconds = static_cast<std::time_t>(model.created_ns / 1'000'000'000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  if (std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0) date[0] = '\0';
  return "These files are a compact copy, not the original: modelstore kept a pruned, quantized part of what makes\n"
         "this model differ from its base. They are the same bytes at every export.\n\n"
         "model:  " +
         model.name + (model.derived ? "\nsource: " : "\nbase:   ") + base +
         (model.derived ? "\nrecipe: " : "\nmethod: ") + model.method + "\ndrift:  " + drift +
         (model.derived ? " of the source" : "") + ", 0 is the original and 1 is the base\nmade:   " + date + "\n";
}

}  // namespace

Result<ExportReport> Export(Catalog& catalog, const std::string& name,
                            const std::function<Status(const ModelRecord&, const ModelFile&)>& may_read,
                            ExportSink& sink, JobControl& job, const std::function<bool(const ModelRecord&)>& may_see) {
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
  ASSIGN_OR_RETURN(const std::string note, FidelityNote(catalog, model, may_see));
  std::vector<ModelFile> files = model.files;
  if (!note.empty()) {
    ModelFile& added = files.emplace_back();
    added.path = kFidelityFile;
    added.bytes = note.size();
    added.mtime_ns = model.created_ns;
    // Who may read all other files may read what they are.
    for (const ModelFile& file : model.files) added.mode &= file.mode;
    if (!model.files.empty()) added.gid = model.files.front().gid;
  }
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
  if (!note.empty()) {
    RETURN_IF_ERROR(sink.BeginFile(model.files.size()));
    RETURN_IF_ERROR(sink.Write(AsBytes(note)));
    RETURN_IF_ERROR(sink.EndFile());
  }
  return report;
}

}  // namespace modelstore
