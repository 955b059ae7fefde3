// What the files of a compact model are, in words beside them (layer: catalog/read). Pure functions.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "catalog/schema/records.h"

namespace modelstore {

inline constexpr std::string_view kFidelityFile = "MODELSTORE_FIDELITY.txt";

// Stands in a note for a base whose name not all who read the note may see.
inline constexpr std::string_view kBaseElsewhere = "`modelstore show` names it to who may see it";

struct FidelityNote {
  ModelFile file;
  std::string text;  // its content
};

// Of a compact model that has no file of that name; else none. `base` stands where its base is named.
std::optional<FidelityNote> MakeFidelityNote(const ModelRecord& model, std::string_view base);

}  // namespace modelstore
