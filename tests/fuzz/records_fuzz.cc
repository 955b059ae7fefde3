// The records of the catalog: the first byte picks the kind. What parses must serialize to the same bytes; packed
// records (version 2 of tensors and files) to the same bytes as what those parse to.
#include <cstdint>
#include <cstdlib>

#include "catalog/schema/folder_record.h"
#include "catalog/schema/records.h"
#include "codec/support/packed.h"

namespace {

using modelstore::ByteSpan;

template <typename Record>
void Check(modelstore::Result<Record> (*parse)(ByteSpan), ByteSpan bytes, bool may_be_packed = false) {
  const auto record = parse(bytes);
  if (!record.ok()) return;
  const modelstore::Bytes again = Serialize(*record);
  const bool is_packed = may_be_packed && bytes[0] == std::byte{2};
  if (!is_packed && modelstore::AsChars(again) != modelstore::AsChars(bytes)) std::abort();
  const auto reparsed = parse(again);
  if (!reparsed.ok() || Serialize(*reparsed) != again) std::abort();
}

// A record of version 2 with this body: past the checksum that mutations of a packed one do not pass.
modelstore::Bytes Packed(ByteSpan body) {
  modelstore::ByteWriter out;
  out.U8(2);
  modelstore::AppendPacked(body, out);
  return out.Release();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const ByteSpan bytes = std::as_bytes(std::span(data + 1, size - 1));
  const std::string_view text = modelstore::AsChars(bytes);
  switch (data[0] % 12) {
    case 0:
      Check(modelstore::ParseTensorRecord, bytes, true);
      break;
    case 1:
      Check(modelstore::ParseFileRecord, bytes, true);
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
    case 8:
      Check(modelstore::ParseUsageTotals, bytes);
      break;
    case 11:
      Check(modelstore::ParseFolderRecord, bytes);
      break;
    case 9:
      Check(modelstore::ParseTensorRecord, Packed(bytes), true);
      break;
    default:
      Check(modelstore::ParseFileRecord, Packed(bytes), true);
  }
  return 0;
}
