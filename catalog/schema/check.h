// Checks that must pass before a store's catalog is used (layer: catalog/schema). Reads only; any thread.
#pragma once

#include <functional>

#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"

namespace modelstore {

// Format version, features, and the digest that notices a published model which the store lost. A store without any
// record is a new one and passes; `meta` (when given) is then CatalogMeta{}.
// `visit`, when given, is called with each model. Errors: Unsupported (newer format or unknown feature, saying which),
// Corruption (models are missing or changed), Io.
Status CheckCatalog(const KvReader& store, CatalogMeta* meta = nullptr,
                    const std::function<void(const ModelRecord&)>& visit = nullptr);

}  // namespace modelstore
