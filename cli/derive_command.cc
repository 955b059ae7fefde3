#include "cli/commands.h"
#include "cli/compact_flags.h"
#include "cli/session.h"

namespace modelstore {
namespace {

Result<Outcome> RunDerive(Session& session, const Arguments& arguments) {
  const std::string drop = arguments.Value("--drop-layers"), keep = arguments.Value("--keep-layers");
  const std::string name = arguments.Value("--name");
  if (name.empty()) return InvalidArgument("derive: --name NAME is needed, the variant's name");
  const std::string slice = arguments.Value("--slice");
  if (!drop.empty() + !keep.empty() + !slice.empty() != 1)
    return InvalidArgument("derive: expected --drop-layers, --keep-layers or --slice, what the variant is made of");
  if (slice.empty() && arguments.values.contains("--basis"))
    return InvalidArgument("derive: --basis goes with --slice");
  ParameterList parameters = {
      {"source", arguments.positionals[0]}, {"name", name}, {"update", arguments.Has("--update")}};
  if (!drop.empty()) parameters.emplace_back("drop_layers", drop);
  if (!keep.empty()) parameters.emplace_back("keep_layers", keep);
  if (!slice.empty()) {
    ASSIGN_OR_RETURN(const double share, ParseNumber("--slice", slice));
    parameters.emplace_back("slice", share);
    parameters.emplace_back("basis", arguments.Value("--basis", "block"));
  }
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
          .options =
              {{"--name", "NAME", "the variant's name"},
               {"--drop-layers", "SPEC", "the layers that go: 20-25,28, last:25%, uniform:4, auto:4"},
               {"--keep-layers", "LIST", "instead: the layers that stay, like 0-19,24"},
               {"--slice", "SHARE", "instead: cut the hidden size by this share along its principal axes"},
               {"--basis", "block|global",
                "axes of each block (the default; loads with trust_remote_code), or the same for all: a stock model"},
               {"--moments", "FILE", "for auto and --slice: the model's moments (docs/moments.md)"},
               {"--layer-names", "PREFIX", "how the tensors of a layer are named, like model.layers.{}."},
               {"--update", "", "replace the model of that name; who reads it reads the old files to the end"},
               kMemoryBudgetOption},
          .run = RunDerive};
}

}  // namespace modelstore
