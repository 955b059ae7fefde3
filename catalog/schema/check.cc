#include "catalog/schema/check.h"

#include <string>

namespace modelstore {

Status CheckCatalog(const KvReader& store, CatalogMeta* meta, const std::function<void(const ModelRecord&)>& visit) {
  CatalogMeta expected;
  auto value = store.Get(Family::kMeta, kCatalogMetaKey);
  if (value.ok()) {
    ASSIGN_OR_RETURN(expected, ParseCatalogMeta(value->bytes()));
  } else if (value.status().code() != StatusCode::kNotFound) {
    return value.status();
  }
  std::string unknown;
  for (const std::string& feature : expected.features) {
    if (!FeatureIsKnown(feature)) unknown += (unknown.empty() ? "\"" : ", \"") + feature + "\"";
  }
  if (!unknown.empty())
    return Unsupported("the store uses the feature " + unknown +
                       ", which this build does not know; use a newer modelstore");
  uint64_t count = 0;
  uint64_t digest = 0;
  RETURN_IF_ERROR(store.Scan(Family::kModels, "", [&](std::string_view key, ByteSpan bytes) -> Status {
    auto model = ParseModelRecord(bytes);
    if (!model.ok()) return model.status().WithContext("model " + std::string(key));
    if (model->name != key)
      return Corruption("model " + std::string(key) + ": its record is named " + model->name +
                        "; restore the store from a copy");
    ++count;
    digest ^= ModelDigest(*model);
    if (visit) visit(*model);
    return OkStatus();
  }));
  if (count != expected.model_count || digest != expected.model_digest) {
    return Corruption("the catalog lists " + std::to_string(expected.model_count) + " models, " +
                      std::to_string(count) + " were found" +
                      (count == expected.model_count ? " but not the same ones" : "") +
                      ": the store's log lost or brought back a change; restore the store from a copy");
  }
  if (meta != nullptr) *meta = std::move(expected);
  return OkStatus();
}

}  // namespace modelstore
