#include "cli/commands.h"
#include "cli/compact_flags.h"
#include "cli/session.h"

namespace modelstore {
namespace {

Result<Outcome> RunDerive(Session& session, const Arguments& arguments) {
  const std::string drop = arguments.Value("--drop-layers"), keep = arguments.Value("--keep-layers");
  const std::string name = arguments.Value("--name");
  if (name.empty()) return InvalidArgument("derive: --name NAME is needed, the variant's name");
  if (drop.empty() == keep.empty())
    return InvalidArgument("derive: expected --drop-layers or --keep-layers, what the variant is made of");
  ParameterList parameters = {
      {"source", arguments.positionals[0]}, {"name", name}, {"update", arguments.Has("--update")}};
  if (!drop.empty()) parameters.emplace_back("drop_layers", drop);
  if (!keep.empty()) parameters.emplace_back("keep_layers", keep);
  if (arguments.values.contains("--layer-names"))
    parameters.emplace_back("layer_names", arguments.Value("--layer-names"));
  ASSIGN_OR_RETURN(const std::optional<SourceTree> moments, OpenMoments(arguments));
  RETURN_IF_ERROR(session.UseMemoryBudget(arguments));
  Outcome out;
  ASSIGN_OR_RETURN(out.document, session.Call("derive", parameters, {.moments = moments ? &*moments : nullptr}));
  if (!session.options().quiet) out.text = RenderPush(out.document, session.style());
  return out;
}

}  // namespace

CommandSpec DeriveCommand() {
  return {.name = "derive",
          .summary = "a smaller variant of a stored model, which costs next to nothing",
          .positionals = {{"NAME", "the model; it stays as long as the variant does"}},
          .options = {{"--name", "NAME", "the variant's name"},
                      {"--drop-layers", "SPEC", "the layers that go: 20-25,28, last:25%, uniform:4, auto:4"},
                      {"--keep-layers", "LIST", "instead: the layers that stay, like 0-19,24"},
                      {"--moments", "FILE",
                       "for auto: the model's moments, which know what each layer does (docs/moments.md)"},
                      {"--layer-names", "PREFIX", "how the tensors of a layer are named, like model.layers.{}."},
                      {"--update", "", "replace the model of that name; who reads it reads the old files to the end"},
                      kMemoryBudgetOption},
          .run = RunDerive};
}

}  // namespace modelstore
