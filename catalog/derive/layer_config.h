// What the JSON of a checkpoint says of its layers, rewritten for those that are kept (layer: catalog/derive;
// docs/derive.md has the rules). Pure.
//
// Key order survives, and what is not of layers. What may be of layers and cannot be rewritten with certainty is
// refused by name: a variant that loads wrongly is worse than none.
#pragma once

#include <string_view>

#include "catalog/derive/layer_mentions.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// config.json. Errors: Unsupported (no JSON object; no count of that many layers; a key that cannot be rewritten).
Result<Bytes> ConfigWithLayers(ByteSpan config, const LayerCut& cut);

// Whether a file beside config.json says something of layers: generation_config.json, an adapter's configuration, …
bool IsLayerSettings(std::string_view file);
// Such a file; the very same bytes when nothing of it changes. Errors: Unsupported, as above.
Result<Bytes> SettingsWithLayers(std::string_view file, ByteSpan text, const LayerCut& cut);

}  // namespace modelstore
