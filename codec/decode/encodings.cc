#include "codec/decode/encodings.h"

#include "codec/decode/encoding_rows.h"

namespace modelstore {

const EncodingRow& RowOf(Encoding encoding) {
  static const EncodingRow* const kRows[] = {&kRawRow, &kZstdRow, &kSelfRow, &kDeltaRow, &kCompactRow, &kProjectedRow};
  return *kRows[static_cast<uint8_t>(encoding)];
}

}  // namespace modelstore
