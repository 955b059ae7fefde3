// BatchBuilder: makes a DeviceProgram of coded blocks and of pieces of compact tensors (layer: codec/device).
//
// Everything that a block says about itself is checked here as the CPU's decoder checks it; what only decoding shows (a
// stream that does not end as it should, a token that stands for nothing) is the block's status when the program has
// run. A block that failed is decoded on the CPU, which says why. Not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "codec/decode/block_decoder.h"
#include "codec/decode/compact_decoder.h"
#include "codec/device/device_program.h"

namespace modelstore {

class BatchBuilder {
 public:
  // `input`: where the program is made, kDeviceAlignment-aligned; outlives the object. The other two are what the
  // device has room for.
  struct Limits {
    MutableByteSpan input;
    uint64_t output_bytes = 0, scratch_bytes = 0;
  };
  using Block = uint32_t;  // by the order in which they were added
  // Elements that predict: the host's, or those of a block of this batch from a byte on.
  struct Prediction {
    ByteSpan bytes{};
    std::optional<Block> block{};
    uint64_t offset_bytes = 0;
  };

  explicit BatchBuilder(const Limits& limits);

  // A block of kSelf or kDelta that is not raw; a delta's prediction is in frame.coded_dtype and as long as the block.
  // `is_wanted`: it goes back to the host; else it only predicts others. Nothing when there is no room left: run the
  // program and begin another. Errors: Corruption.
  Result<std::optional<Block>> AddBlock(const Frame& frame, uint32_t index, ByteSpan coded,
                                        const Prediction& prediction, bool is_wanted);
  // A block of kCompact of these pieces, which tile it. Pieces of one segment (by its address) have the same right
  // factors; segments live as long as this object. Errors: Corruption.
  struct Piece {
    CompactPiece piece;
    CompactInputs inputs;
    Prediction prediction{};
    Prediction residual{};  // of a block (U16) instead of inputs.residual
  };
  Result<std::optional<Block>> AddCompact(const Frame& frame, uint32_t index, std::span<const Piece> pieces);

  bool empty() const { return blocks_.empty(); }
  // Completes the program. Nothing may be added any more.
  const DeviceProgram& Finish();

  // Once it has run, with what came back: whether the block is what it should be, and its bytes, if it was wanted.
  bool Succeeded(Block block, ByteSpan output) const;
  ByteSpan BytesOf(Block block, ByteSpan output) const;

 private:
  struct Made {
    DeviceRef out;
    uint64_t bytes = 0;
    uint32_t first_status = 0, end_status = 0;
    std::vector<Block> needs;
    std::vector<uint32_t> unpacks;  // statuses of those that it needs
    uint32_t wave = 0;              // behind those of what it needs
    bool is_compact = false;        // made after all streams: nobody's prediction
  };
  struct Stream {
    uint32_t wave = 0;
    DeviceKernel kernel = DeviceKernel::kSelf8;
    uint32_t tables = 0;
    DeviceStream stream;
  };
  struct Tile {
    DeviceKernel kernel = DeviceKernel::kRebuildBf16;
    DeviceTile tile;
  };
  struct Factors {
    DeviceRef out;
    std::vector<uint32_t> statuses;
  };
  // What an addition that does not fit takes back.
  struct Mark;
  Mark MarkNow() const;
  void ReturnTo(const Mark& mark);

  // Room in one of the spaces; false: none left.
  bool Take(DeviceSpace space, uint64_t bytes, DeviceRef* ref);
  bool CopyIn(ByteSpan bytes, DeviceRef* ref);
  template <typename T>
  bool CopyIn(const std::vector<T>& values, DeviceRef* ref) {
    return CopyIn(std::as_bytes(std::span(values)), ref);
  }
  bool AddUnits(const std::array<uint8_t, 3>& biases, DeviceRef* ref);
  bool AddTables(const Frame& frame, uint32_t* index);
  bool AddPrediction(const Prediction& prediction, Made* made, DeviceRef* ref);
  bool AddUnpacks(ByteSpan tokens, uint64_t first_level, uint64_t levels, DeviceRef scales, uint32_t rank,
                  Factors* factors);
  bool AddStreams(const Frame& frame, const CodedStreams& coded, const Prediction& prediction, bool is_wanted);
  bool AddPiece(const Frame& frame, const Piece& piece, DeviceRef out, Made* made);
  bool Fits() const;
  // Whether the prediction is `bytes` long, its elements `width` wide; of a block that streams give.
  bool IsWhole(const Prediction& prediction, uint64_t bytes, uint32_t width) const;

  const Limits limits_;
  uint64_t used_[3] = {};  // by DeviceSpace
  uint64_t array_bytes_ = 0;
  uint32_t statuses_ = 0;
  std::vector<Made> blocks_;
  std::vector<DeviceTables> tables_;
  std::map<uint64_t, uint32_t> table_of_serial_;
  std::vector<Stream> streams_;
  std::vector<DeviceUnpack> unpacks_;
  std::vector<DevicePiece> pieces_;
  std::vector<Tile> tiles_;
  std::map<const CompactSegment*, Factors> rights_;
  std::map<std::array<uint8_t, 3>, DeviceRef> units_;  // by the biases
};

}  // namespace modelstore
