#include "catalog/derive/derive.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "catalog/derive/checkpoint_files.h"
#include "catalog/derive/derived_content.h"
#include "catalog/derive/layer_names.h"
#include "catalog/derive/layer_spec.h"
#include "catalog/write/moments_file.h"
#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

constexpr std::string_view kConfig = "config.json", kIndex = "model.safetensors.index.json",
                           kSafetensors = ".safetensors";
constexpr uint64_t kMaxJsonBytes = 64 << 20;
// Weights that a variant would contradict.
constexpr std::array<std::string_view, 9> kOtherWeights = {".bin",  ".pt", ".pth",     ".gguf",  ".onnx",
                                                           ".ckpt", ".h5", ".msgpack", ".tflite"};

// A file of the source.
struct Part {
  const ModelFile* file = nullptr;
  std::shared_ptr<const StoredFile> stored;
  SafetensorsHeader header{};  // of the checkpoint's weights
  bool is_weights = false;
};

class LayerChop {
 public:
  LayerChop(Catalog& catalog, const DeriveOptions& options, JobControl& job)
      : catalog_(catalog), options_(options), job_(job) {}

  Result<PushReport> Run() {
    ASSIGN_OR_RETURN(source_, catalog_.FindModel(options_.source));
    if (options_.may_read) RETURN_IF_ERROR(options_.may_read(source_));
    if (options_.name == options_.source) return InvalidArgument("a variant needs another name than its source");
    RETURN_IF_ERROR(OpenParts());
    RETURN_IF_ERROR(ChooseLayers());
    ASSIGN_OR_RETURN(std::vector<SourceFile> files, MakeFiles());

    PushOptions push;
    push.name = options_.name;
    push.base = PushOptions::Base::kNone;
    push.owner_uid = options_.owner_uid;
    push.update = options_.update;
    push.derivation = Derivation{source_, Recipe()};
    push.may_replace = options_.may_replace;
    return Push(catalog_, SourceTree::OfContent(options_.name, std::move(files)), push, job_);
  }

 private:
  // The checkpoint is where the uppermost config.json is, or without one, the uppermost safetensors file.
  Status OpenParts() {
    const auto depth = [](const std::string& path) { return std::ranges::count(path, '/'); };
    const ModelFile* uppermost = nullptr;
    for (const std::string_view kind : {kConfig, kSafetensors}) {
      for (const ModelFile& file : source_.files) {
        if (kind == kConfig ? BaseName(file.path) != kConfig : !file.path.ends_with(kind)) continue;
        if (uppermost == nullptr || depth(file.path) < depth(uppermost->path)) uppermost = &file;
      }
      if (uppermost != nullptr) break;
    }
    if (uppermost == nullptr)
      return Unsupported("'" + source_.name + "' has no safetensors files; variants are made of checkpoints that have");
    folder_ = uppermost->path.substr(0, uppermost->path.size() - BaseName(uppermost->path).size());

    for (const ModelFile& file : source_.files) {
      Part& part = parts_.emplace_back();
      part.file = &file;
      ASSIGN_OR_RETURN(FileRef opened, catalog_.reader().OpenFileByHash(file.sha256));
      part.stored = std::make_shared<const StoredFile>(std::move(opened));
    }
    std::optional<std::set<std::string>> listed;
    if (const Part* index = Find(kIndex)) {
      ASSIGN_OR_RETURN(const Bytes text, ReadAll(*index));
      ASSIGN_OR_RETURN(listed, IndexedFiles(text));
    }
    for (Part& part : parts_) {
      const std::string name = NameInFolder(part);
      if (!name.ends_with(kSafetensors) || (listed && !listed->contains(name))) continue;
      ASSIGN_OR_RETURN(part.header, ReadHeader(part));
      part.is_weights = true;
    }
    if (std::ranges::none_of(parts_, &Part::is_weights))
      return Unsupported("'" + source_.name + "' has no safetensors files beside its config.json");
    return OkStatus();
  }

  static std::string_view BaseName(std::string_view path) { return path.substr(path.rfind('/') + 1); }

  // Of a file of the checkpoint's folder; else "".
  std::string NameInFolder(const Part& part) const {
    const std::string& path = part.file->path;
    if (!path.starts_with(folder_) || path.find('/', folder_.size()) != std::string::npos) return "";
    return path.substr(folder_.size());
  }

  const Part* Find(std::string_view name) const {
    const auto part = std::ranges::find_if(parts_, [&](const Part& p) { return NameInFolder(p) == name; });
    return part == parts_.end() ? nullptr : &*part;
  }

  Status Read(const Part& part, uint64_t bytes, Bytes* out) const {
    out->resize(bytes);
    ASSIGN_OR_RETURN(const size_t read, catalog_.reader().Read(part.stored->file, 0, *out));
    return read == bytes ? OkStatus() : Corruption(part.file->path + ": the stored file ends early");
  }

  Result<Bytes> ReadAll(const Part& part) const {
    if (part.file->bytes > kMaxJsonBytes)
      return Unsupported(part.file->path + ": " + std::to_string(part.file->bytes) + " bytes are too many");
    Bytes out;
    RETURN_IF_ERROR(Read(part, part.file->bytes, &out));
    return out;
  }

  Result<SafetensorsHeader> ReadHeader(const Part& part) const {
    const auto read = [&]() -> Result<SafetensorsHeader> {
      Bytes header;
      RETURN_IF_ERROR(Read(part, std::min(part.file->bytes, kSafetensorsLengthBytes), &header));
      ASSIGN_OR_RETURN(const uint64_t bytes, SafetensorsHeaderBytes(header, part.file->bytes));
      RETURN_IF_ERROR(Read(part, bytes, &header));
      return ReadSafetensorsHeader(header, part.file->bytes);
    };
    Result<SafetensorsHeader> header = read();
    if (!header.ok()) return header.status().WithContext(source_.name + "/" + part.file->path);
    return header;
  }

  Status ChooseLayers() {
    std::vector<std::string> names;
    std::set<std::string_view> unique;
    for (const Part& part : parts_) {
      for (const HeaderTensor& tensor : part.header.tensors) {
        names.push_back(tensor.name);
        if (!unique.insert(tensor.name).second)
          return Unsupported("'" + source_.name + "' has two tensors named '" + tensor.name +
                             "' and no index that says which one counts");
      }
    }
    ASSIGN_OR_RETURN(layers_, options_.layer_scheme.empty() ? FindLayers(names, options_.more_schemes)
                                                            : FindLayersNamed(names, options_.layer_scheme));
    if (!options_.keep_layers.empty()) {
      ASSIGN_OR_RETURN(kept_, KeepLayers(options_.keep_layers, layers_.layers));
      return OkStatus();
    }
    std::vector<double> influence;
    if (NeedsInfluence(options_.drop_layers) && options_.moments != nullptr) {
      if (options_.moments->files().size() != 1) return InvalidArgument("moments: expected one file");
      ASSIGN_OR_RETURN(const MomentsFile moments, MomentsFile::Open(options_.moments->files()[0]));
      for (uint32_t layer = 0; layer < layers_.layers; ++layer) {
        std::string block = layers_.scheme.NameOf(layer, "");
        while (block.ends_with('.')) block.pop_back();
        ASSIGN_OR_RETURN(const double value, moments.Influence(block));
        influence.push_back(value);
      }
    }
    ASSIGN_OR_RETURN(kept_, DropLayers(options_.drop_layers, layers_.layers, influence));
    return OkStatus();
  }

  std::string Recipe() const {
    std::vector<uint32_t> dropped;
    for (uint32_t layer = 0; layer < layers_.layers; ++layer) {
      if (!std::ranges::binary_search(kept_, layer)) dropped.push_back(layer);
    }
    std::string recipe = "layers " + LayerList(dropped) + " of " + std::to_string(layers_.layers) + " dropped";
    if (source_.derived) recipe += ", from: " + source_.method;
    if (recipe.size() > kMaxMethodBytes) recipe = recipe.substr(0, kMaxMethodBytes - 3) + "...";
    return recipe;
  }

  Result<std::vector<SourceFile>> MakeFiles() {
    std::vector<SourceFile> files;
    std::map<std::string, IndexEntry> index;
    for (const Part& part : parts_) {
      if (!part.is_weights) continue;
      auto content = std::make_shared<DerivedContent>(catalog_.reader());
      RETURN_IF_ERROR(Chop(part, &index, content.get()));
      if (content->bytes() > 0) files.push_back(FileLike(part, std::move(content)));
    }
    for (const Part& part : parts_) {
      if (part.is_weights) continue;
      const std::string name = NameInFolder(part);
      auto content = std::make_shared<DerivedContent>(catalog_.reader());
      if (name == kConfig || name == kIndex) {
        ASSIGN_OR_RETURN(const Bytes text, ReadAll(part));
        ASSIGN_OR_RETURN(Bytes rewritten,
                         name == kConfig ? ConfigWithLayers(text, layers_.layers, kept_) : RewriteIndex(text, index));
        content->Append(std::move(rewritten));
      } else if (IsOtherWeights(part)) {
        job_.Warn(part.file->path + ": weights of the whole model, left out of the variant");
        continue;
      } else {
        content->Append(part.stored, 0, part.file->bytes);
      }
      files.push_back(FileLike(part, std::move(content)));
    }
    if (Find(kConfig) == nullptr)
      job_.Warn("'" + source_.name + "' has no config.json; tell the program that loads the variant that it has " +
                std::to_string(kept_.size()) + " layers");
    return files;
  }

  static bool IsOtherWeights(const Part& part) {
    const std::string& path = part.file->path;
    return path.ends_with(kSafetensors) || path.ends_with(".bin.index.json") ||
           std::ranges::any_of(kOtherWeights, [&](std::string_view kind) { return path.ends_with(kind); });
  }

  // The tensors of a file that stay, under their new names; nothing when none does.
  Status Chop(const Part& part, std::map<std::string, IndexEntry>* index, DerivedContent* content) const {
    SafetensorsHeader header{part.header.metadata, {}};
    std::vector<uint64_t> begins;
    for (HeaderTensor tensor : part.header.tensors) {
      if (const auto place = layers_.scheme.Find(tensor.name)) {
        const auto at = std::ranges::lower_bound(kept_, place->layer);
        if (at == kept_.end() || *at != place->layer) continue;
        tensor.name = layers_.scheme.NameOf(static_cast<uint32_t>(at - kept_.begin()), place->rest);
      }
      (*index)[tensor.name] = {NameInFolder(part), tensor.bytes, tensor.elems()};
      begins.push_back(tensor.begin);
      header.tensors.push_back(std::move(tensor));
    }
    if (header.tensors.empty()) return OkStatus();
    ASSIGN_OR_RETURN(Bytes bytes, WriteSafetensorsHeader(header));
    content->Append(std::move(bytes));
    for (size_t i = 0; i < begins.size(); ++i) content->Append(part.stored, begins[i], header.tensors[i].bytes);
    return OkStatus();
  }

  SourceFile FileLike(const Part& part, std::shared_ptr<const DerivedContent> content) const {
    SourceFile file;
    file.path = part.file->path;
    file.shown_as = options_.name + "/" + part.file->path;
    file.bytes = content->bytes();
    file.mode = part.file->mode;
    file.gid = part.file->gid;
    file.mtime_ns = part.file->mtime_ns;
    file.content = std::move(content);
    return file;
  }

  Catalog& catalog_;
  const DeriveOptions& options_;
  JobControl& job_;
  ModelRecord source_;
  std::string folder_;  // of the checkpoint in the model; "" or with a '/' at its end
  std::vector<Part> parts_;
  NamedLayers layers_;
  std::vector<uint32_t> kept_;
};

}  // namespace

Result<PushReport> Derive(Catalog& catalog, const DeriveOptions& options, JobControl& job) {
  if (options.drop_layers.empty() == options.keep_layers.empty())
    return InvalidArgument("say what the variant is made of: --drop-layers or --keep-layers");
  return LayerChop(catalog, options, job).Run();
}

}  // namespace modelstore
