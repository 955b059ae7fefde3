// Guarded: where an exception ends and becomes a Status (layer: codec/support).
//
// modelstore throws nothing by itself, but the standard library does, std::bad_alloc above all. Such an exception may
// pass through functions, whose objects undo in their destructors what they began; it ends at the next entry: a task of
// a pool, the body of a thread, a request, a decode that others wait for. Each of these runs in Guarded.
#pragma once

#include <type_traits>
#include <utility>

#include "codec/support/status.h"

namespace modelstore {

// ResourceExhausted, made when the program starts: reporting that memory ran out takes none.
Status OutOfMemory() noexcept;

// The exception that is being handled, as a failure: ResourceExhausted when memory or threads ran out, else Internal.
Status StatusOfException() noexcept;

// What `body` returns (a Status or a Result), or what it throws as a failure.
template <typename Body>
std::invoke_result_t<Body> Guarded(Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    return StatusOfException();
  }
}

}  // namespace modelstore
