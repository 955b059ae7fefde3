// BatchDecoder: a device that decodes many blocks at once, as the read path sees it (layer: catalog/read).
//
// Only for reading ahead: whoever needs a block now decodes it. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "codec/device/batch_builder.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

class BatchDecoder {
 public:
  class Batch {
   public:
    virtual ~Batch() = default;
    virtual BatchBuilder& builder() = 0;
    // Completes the program, runs it and waits. Errors: Unavailable (the device failed; it is not used again).
    virtual Status Run() = 0;
    // Behind a Run that went well.
    virtual ByteSpan output() const = 0;
    // What came of it: bytes that went to readers, and blocks that failed on the device.
    virtual void Report(uint64_t decoded_bytes, uint64_t failed_blocks) = 0;
    // The device decodes wrongly: it is not used again.
    virtual void Distrust(const std::string& why) = 0;
  };

  virtual ~BatchDecoder() = default;
  // For blocks of about so many bytes; null when the device is busy or would be slower than the CPU.
  virtual std::unique_ptr<Batch> Begin(uint64_t bytes) = 0;
  // Whether it pays for blocks of this encoding.
  virtual bool Takes(Encoding encoding) const = 0;
  // How far ahead of a reader to decode at once; 0: not at all.
  virtual uint64_t batch_bytes() const = 0;
};

}  // namespace modelstore
