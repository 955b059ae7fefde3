// Push: store a file or folder as a model (layer: catalog/write).
//
// Source bytes are read with pread from files opened once; a source that changes or vanishes while it is read is an
// error and nothing is published. What is reported as stored has been decoded again from the store and compared.
// A compact push stores what the large tensors are rebuilt to, not what they were: docs/compact.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/source_window.h"
#include "codec/encode/compact_budget.h"
#include "codec/support/bytes.h"
#include "codec/support/clock.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

// Content of a source that is no open file: a model of the store itself. Thread-safe.
class SourceContent {
 public:
  virtual ~SourceContent() = default;
  // Fills `out` from `offset`; the bytes exist.
  virtual Status ReadAt(uint64_t offset, MutableByteSpan out) const = 0;
  // The stored tensor, or the part of one, that these bytes are, when they are just that: a push then refers to it
  // without comparing. It stays while this object lives.
  struct Place {
    TensorId tensor;
    bool is_part = false;
    uint64_t offset_bytes = 0;
  };
  // F16 patterns, rows x columns, which `load` gives.
  struct Axes {
    uint64_t rows = 0, columns = 0;
    std::function<Result<Bytes>()> load;
  };
  // How these bytes, a whole tensor, are computed from a stored one (codec/decode/projected_decoder.h): the push then
  // stores that, and checks that it gives them. `norm` has the weight's dtype. Both tensors stay while this object
  // lives.
  struct Projection {
    TensorId weight;
    std::optional<TensorId> norm;
    std::shared_ptr<const Axes> axes;
  };
  virtual std::optional<Projection> ProjectionOf(uint64_t /*offset*/, uint64_t /*bytes*/) const { return std::nullopt; }
  virtual std::optional<Place> PlaceOf(uint64_t /*offset*/, uint64_t /*bytes*/) const { return std::nullopt; }
};

// One file to store. Opened by the caller with its own rights (the daemon's clients pass descriptors).
struct SourceFile {
  std::string path;                      // within the model
  std::string shown_as;                  // for messages: the path as the user knows it
  int fd = -1;                           // read-only, regular; owned by SourceTree; -1: opened when its turn comes
  size_t ordinal = 0;                    // tells the files of a tree apart; of passed ones the order in which they came
  std::shared_ptr<SourceWindow> window;  // opens it then; null: it is opened by `shown_as`
  uint64_t bytes = 0;
  uint32_t mode = 0;         // who may read and execute it, its folders and access control list considered
  bool is_narrowed = false;  // its own mode lets more people in than `mode`; never a file of a store's mount
  uint32_t gid = 0;          // the group that `mode` speaks of
  TimeNs mtime_ns = 0;
  TimeNs ctime_ns = 0;  // of the last change of content or attributes: cannot be set back
  uint64_t device = 0, inode = 0;
  bool linked = true;  // false: had no name any more when it was opened (a descriptor of a deleted file)
  std::shared_ptr<const SourceContent> content;  // instead of a descriptor
  // The SHA-256 of `content` that is a stored file: an exact push refers to that instead of storing it again.
  std::optional<Sha256Digest> stored{};
};

// A file that a client of the daemon opened with its own rights.
struct OpenedFile {
  std::string path;      // within the model
  std::string shown_as;  // the path as the client knows it
  int fd = -1;           // owned by whoever holds the struct
  uint32_t mode = 0;     // of the group and others no more than this: what the folders that lead to it let through
};

// The mount of the store that a push goes to, when it has one in this process.
struct OwnMount {
  uint64_t device = 0;  // 0: none
  Catalog* catalog = nullptr;
};

// The files below a path, or passed by a client; as many as descriptors allow are open. Closes them when destroyed.
class SourceTree {
 public:
  SourceTree() = default;
  SourceTree(SourceTree&& other) noexcept;
  SourceTree& operator=(SourceTree&& other) noexcept;
  ~SourceTree();

  // `path`: a file, a folder, or a link to one. Links inside are followed, also those to folders but for links to a
  // folder that they lie in; sockets, devices, FIFOs and links to them are refused by name. Files are sorted by path.
  // With more files than descriptors allow, the rest have fd -1: Push opens those by `shown_as` when their turn comes.
  // Whom a folder that leads to a file, from the root on, or an access control list keeps out, the file's mode keeps
  // out too. Errors: NotFound, PermissionDenied, InvalidArgument, Io.
  static Result<SourceTree> Scan(const std::string& path);
  // Files that somebody else opened, taken over whatever comes of it. Each must be a regular file opened for reading
  // only; attributes are asked of the descriptor. A file of `own` is the stored file that it shows: a push that read it
  // through the mount would wait for itself. Errors: InvalidArgument (not regular, opened for writing or O_PATH, two of
  // one path, a bad path), NotFound and Corruption (of what our own mount showed), Io.
  static Result<SourceTree> FromDescriptors(std::string default_name, std::vector<OpenedFile> files,
                                            const OwnMount& own = {});
  // The same, file by file as they come. With a `window` the descriptor is closed at once, and the file opened by that
  // when its turn comes. Errors: of FromDescriptors but for two of one path.
  Status AddDescriptor(OpenedFile file, const OwnMount& own, std::shared_ptr<SourceWindow> window);
  // Ends that: puts the files in order. Errors: InvalidArgument (two of one path).
  Status FinishDescriptors();

  // The files of a stored model, read as they were when this was called, whatever becomes of the name. `catalog`
  // outlives the tree. Errors: Corruption, Io.
  static Result<SourceTree> OfModel(Catalog& catalog, const ModelRecord& model);
  // Files that have content instead of descriptors.
  static SourceTree OfContent(std::string default_name, std::vector<SourceFile> files);

  const std::string& default_name() const { return default_name_; }  // PATH's last component
  const std::vector<SourceFile>& files() const { return files_; }
  uint64_t total_bytes() const;
  // What whoever pushes should know about how these files are stored, a line each.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  void NoteNarrowed();

  std::string default_name_;
  std::vector<SourceFile> files_;
  std::vector<std::string> notes_;
};

// How a compact push spends its bytes. Without a target, a drift or a choice: kDefaultMaxDrift.
struct CompactOptions {
  std::optional<double> target_ratio;  // logical bytes / stored bytes, at least that
  std::optional<double> max_drift;     // what is stored may drift so far; else the push is Unsupported
  bool or_exact = false;               // a model that would drift farther than max_drift is stored exactly instead
  CompactSchedule schedule = CompactSchedule::kRd;
  std::optional<CompactChoice> choice;  // the same for every tensor
  std::optional<double> scale;          // every delta is scaled by it; else each tensor's scale follows from its drift
  const SourceTree* moments = nullptr;  // one safetensors file (docs/moments.md)
};
inline constexpr double kDefaultMaxDrift = 0.05;

// What makes a pushed model a derived one (catalog/derive).
struct Derivation {
  ModelRecord source;  // as it was read; when it was replaced or removed by the time of publishing the push fails
  std::string recipe;  // for people, at most kMaxMethodBytes
};

struct PushOptions {
  std::string name;
  enum class Base { kAuto, kNone, kNamed } base = Base::kAuto;
  std::string base_name;      // kNamed
  uint32_t owner_uid = 0;     // of the model: may rename, replace and remove it
  std::string not_against{};  // no base for this push: the model whose own files it stores
  // Replaces a model of that name in the same moment; who reads the old content reads it to the end, and prune frees
  // it. Models stored against the old content keep what they need of it.
  bool update = false;
  std::optional<CompactOptions> compact{};  // none: exact
  bool allow_compact = false;               // the daemon's policy may make the model compact when space is short
  std::optional<Derivation> derivation{};   // of a model that is derived from another, not of a compact push
  // Asked before the work and again in the moment of publishing, about the model that would be replaced; and once,
  // about the base that was named (NotFound: as if there were no such model). Null: everything is allowed. Called under
  // locks: they may not change the catalog.
  std::function<Status(const ModelRecord& replaced)> may_replace = nullptr;
  std::function<Status(const ModelRecord& base)> may_use_as_base = nullptr;
};

struct PushReport {
  std::string name;
  std::string base;  // "" for none
  uint64_t logical_bytes = 0;
  uint64_t stored_bytes = 0;  // all bytes this push added: keys, values, records, blocks
  double seconds = 0;
  bool verified = false;
  // Logical bytes by how they are stored.
  uint64_t identical_file_bytes = 0, identical_tensor_bytes = 0, self_bytes = 0, delta_bytes = 0, raw_bytes = 0,
           content_bytes = 0, compact_bytes = 0, projected_bytes = 0;
  Fidelity fidelity = Fidelity::kExact;
  double drift = 0;  // of a compact model
  DriftKind drift_kind = DriftKind::kNone;
  std::string method;
  std::string recipe;  // of a derived model
  size_t files = 0;
};

// Errors: AlreadyExists (name taken, or `a` against `a/b`), NotFound (--base), InvalidArgument (name), NoSpace (says
// how much is missing; checked before and while writing), Io (source changed), Cancelled, ResourceExhausted; of a
// compact push also Unsupported (no base, a budget that cannot be met). On any error nothing is published and what was
// written is removed (or left for prune when even that fails).
Result<PushReport> Push(Catalog& catalog, const SourceTree& source, const PushOptions& options, JobControl& job);

}  // namespace modelstore
