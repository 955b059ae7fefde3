#include <cstring>

#include "catalog/write/base_choice.h"
#include "codec/decode/block_decoder.h"

namespace modelstore {

Result<std::optional<SketchRecord>> MakeSketch(const TensorData& data) {
  const SourceExtent& extent = data.extent();
  const uint64_t elems = extent.elems();
  if (!DTypeIsFloat(extent.dtype) || elems < kSketchMinElems) return std::optional<SketchRecord>();
  SketchRecord sketch;
  sketch.dtype = extent.dtype;
  sketch.shape = extent.shape;
  const uint32_t width = DTypeBytes(extent.dtype);
  Buffer scratch;
  for (uint64_t i = 0; i < kSketchValues; ++i) {
    // The middle of the i-th of kSketchValues equal parts, without overflow.
    const uint64_t parts = 2 * kSketchValues;
    const uint64_t at = elems / parts * (2 * i + 1) + elems % parts * (2 * i + 1) / parts;
    ASSIGN_OR_RETURN(const ByteSpan value, data.Read(at * width, width, &scratch));
    uint32_t f32 = 0;
    ConvertElements(extent.dtype, DType::kF32, value, std::as_writable_bytes(std::span(&f32, 1)));
    sketch.values.push_back(static_cast<uint16_t>(f32 >> 16));
  }
  return std::optional(std::move(sketch));
}

}  // namespace modelstore
