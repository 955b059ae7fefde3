#include "catalog/derive/layer_chop.h"

#include <map>

#include "catalog/derive/layer_config.h"
#include "catalog/derive/layer_names.h"
#include "catalog/derive/layer_spec.h"

namespace modelstore {
namespace {

class LayerChop {
 public:
  LayerChop(Catalog& catalog, const SourceCheckpoint& source, const DeriveOptions& options, JobControl& job)
      : catalog_(catalog), source_(source), options_(options), job_(job), names_(source.TensorNames()) {}

  Result<Variant> Run(const MomentsFile* moments) {
    RETURN_IF_ERROR(ChooseLayers(moments));
    ASSIGN_OR_RETURN(std::vector<SourceFile> files, MakeFiles());
    return Variant{std::move(files), Recipe()};
  }

 private:
  using Part = SourceCheckpoint::Part;

  Status ChooseLayers(const MomentsFile* moments) {
    ASSIGN_OR_RETURN(NamedLayers named, options_.layer_scheme.empty() ? FindLayers(names_, options_.more_schemes)
                                                                      : FindLayersNamed(names_, options_.layer_scheme));
    cut_ = {std::move(named.scheme), named.layers, {}, names_};
    if (!options_.keep_layers.empty()) {
      ASSIGN_OR_RETURN(cut_.kept, KeepLayers(options_.keep_layers, cut_.layers));
      return OkStatus();
    }
    std::vector<double> influence;
    if (NeedsInfluence(options_.drop_layers) && moments != nullptr) {
      for (uint32_t layer = 0; layer < cut_.layers; ++layer) {
        std::string block = cut_.scheme.NameOf(layer, "");
        while (block.ends_with('.')) block.pop_back();
        ASSIGN_OR_RETURN(const double value, moments->Influence(block));
        influence.push_back(value);
      }
    }
    ASSIGN_OR_RETURN(cut_.kept, DropLayers(options_.drop_layers, cut_.layers, influence));
    return OkStatus();
  }

  std::string Recipe() const {
    std::vector<uint32_t> dropped;
    for (uint32_t layer = 0; layer < cut_.layers; ++layer) {
      if (!cut_.NumberOf(layer)) dropped.push_back(layer);
    }
    return "layers " + LayerList(dropped) + " of " + std::to_string(cut_.layers) + " dropped";
  }

  Result<std::vector<SourceFile>> MakeFiles() {
    if (source_.Find(kConfigFile) == nullptr)
      job_.Warn("'" + source_.model().name +
                "' has no config.json; tell the program that loads the variant that it has " +
                std::to_string(cut_.kept.size()) + " layers");
    const FileChanges changes = {
        .weights = [this](const auto& part, auto* index, auto* content) { return Chop(part, index, content); },
        .config = [this](ByteSpan text) { return ConfigWithLayers(text, cut_); },
        .settings = [this](std::string_view file, ByteSpan text) { return SettingsWithLayers(file, text, cut_); }};
    return MakeVariantFiles(catalog_, source_, options_.name, changes, job_);
  }

  // The tensors of a file that stay, under their new names; nothing when none does.
  Status Chop(const Part& part, std::map<std::string, IndexEntry>* index, DerivedContent* content) const {
    SafetensorsHeader header{part.header.metadata, {}};
    std::vector<uint64_t> begins;
    for (HeaderTensor tensor : part.header.tensors) {
      const std::string_view name = tensor.name;
      const std::string_view adapted = name.starts_with(kAdapterPrefix) ? kAdapterPrefix : "";
      if (const auto place = cut_.scheme.Find(name.substr(adapted.size()))) {
        const auto number = cut_.NumberOf(place->layer);
        if (!number) continue;
        tensor.name = std::string(adapted) + cut_.scheme.NameOf(*number, place->rest);
      }
      (*index)[tensor.name] = {source_.NameInFolder(part), tensor.bytes, tensor.elems()};
      begins.push_back(tensor.begin);
      header.tensors.push_back(std::move(tensor));
    }
    if (header.tensors.empty()) return OkStatus();
    ASSIGN_OR_RETURN(Bytes bytes, WriteSafetensorsHeader(header));
    content->Append(std::move(bytes));
    for (size_t i = 0; i < begins.size(); ++i) content->Append(part.stored, begins[i], header.tensors[i].bytes);
    return OkStatus();
  }

  Catalog& catalog_;
  const SourceCheckpoint& source_;
  const DeriveOptions& options_;
  JobControl& job_;
  const std::vector<std::string> names_;
  LayerCut cut_;
};

}  // namespace

Result<Variant> ChopLayers(Catalog& catalog, const SourceCheckpoint& source, const DeriveOptions& options,
                           const MomentsFile* moments, JobControl& job) {
  return LayerChop(catalog, source, options, job).Run(moments);
}

}  // namespace modelstore
