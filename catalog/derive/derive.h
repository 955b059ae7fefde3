// Derive: a variant of a stored model as a model of its own (layer: catalog/derive; docs/derive.md).
//
// The variant is a checkpoint folder in the hub's format that names the source's tensors: only headers, the index and
// the configuration are new. It pins its source.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "catalog/write/push.h"

namespace modelstore {

struct DeriveOptions {
  std::string source, name;
  // What the variant is made of, one of three: the layers that go, those that stay (both as in layer_spec.h),
  std::string drop_layers{}, keep_layers{};
  // or the share of the hidden size that is sliced off, 0 to below 1, in the bases that `basis` says (slice.h).
  std::optional<double> slice{};
  enum class Basis { kBlock, kGlobal } basis = Basis::kBlock;
  // Schemes (layer_names.h): the one that it is, or those that are tried before the known ones.
  std::string layer_scheme{};
  std::vector<std::string> more_schemes{};
  const SourceTree* moments = nullptr;  // one file (docs/moments.md), for influences and slicing
  uint32_t owner_uid = 0;
  bool update = false;
  std::function<Status(const ModelRecord& source)> may_read = nullptr;  // null: everything is allowed
  std::function<Status(const ModelRecord& replaced)> may_replace = nullptr;
};

// Errors: as Push's; NotFound (the source), InvalidArgument (layers that
// there are not, moments of another model), Unsupported (no safetensors checkpoint, layers named otherwise, a
// configuration that cannot be rewritten), Busy (the source was replaced meanwhile).
Result<PushReport> Derive(Catalog& catalog, const DeriveOptions& options, JobControl& job);

}  // namespace modelstore
