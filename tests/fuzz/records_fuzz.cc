// The records of the catalog: the first byte picks the kind. What parses must serialize to the same bytes.
#include <cstdint>
#include <cstdlib>

#include "catalog/schema/records.h"

namespace {

using modelstore::ByteSpan;

template <typename Record>
void Check(modelstore::Result<Record> (*parse)(ByteSpan), ByteSpan bytes) {
  const auto record = parse(bytes);
  if (!record.ok()) return;
  const modelstore::Bytes again = Serialize(*record);
  if (modelstore::AsChars(again) != modelstore::AsChars(bytes)) std::abort();
  if (!parse(again).ok()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const ByteSpan bytes = std::as_bytes(std::span(data + 1, size - 1));
  const std::string_view text = modelstore::AsChars(bytes);
  switch (data[0] % 9) {
    case 0:
      Check(modelstore::ParseTensorRecord, bytes);
      break;
    case 1:
      Check(modelstore::ParseFileRecord, bytes);
      break;
    case 2:
      Check(modelstore::ParseModelRecord, bytes);
      break;
    case 3:
      Check(modelstore::ParseCatalogMeta, bytes);
      break;
    case 4:
      Check(modelstore::ParseSketchRecord, bytes);
      break;
    case 5:
      // A name that passes is a path that passes.
      if (modelstore::CheckModelName(text).ok() && !modelstore::CheckFilePath(text).ok()) std::abort();
      break;
    case 6: {
      const auto id = modelstore::ParseTensorKey(text);
      if (id.ok() && modelstore::TensorKey(*id) != text) std::abort();
      (void)modelstore::ParseEdgeDependent(text);
      (void)modelstore::OpenBlock(bytes);
      break;
    }
    case 7:
      Check(modelstore::ParseUsageRecord, bytes);
      break;
    default:
      Check(modelstore::ParseUsageTotals, bytes);
  }
  return 0;
}
