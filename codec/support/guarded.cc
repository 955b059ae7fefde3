#include "codec/support/guarded.h"

#include <exception>
#include <new>
#include <string>
#include <system_error>

namespace modelstore {
namespace {

// Never destroyed: threads may fail until the very end.
const Status& MadeOutOfMemory() {
  static const Status& made =
      *new Status(ResourceExhausted("out of memory; give the process more, or lower the memory budget"));
  return made;
}
[[maybe_unused]] const bool kIsOutOfMemoryMade = !MadeOutOfMemory().ok();

Status Describe() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return OutOfMemory();
  } catch (const std::system_error& e) {
    if (e.code() == std::errc::resource_unavailable_try_again)
      return ResourceExhausted(std::string("the system gives no more threads: ") + e.what());
    return Internal(std::string("unexpected failure: ") + e.what());
  } catch (const std::exception& e) {
    return Internal(std::string("unexpected failure: ") + e.what());
  } catch (...) {
    return Internal("unexpected failure without a description");
  }
}

}  // namespace

Status OutOfMemory() noexcept { return MadeOutOfMemory(); }

Status StatusOfException() noexcept {
  try {
    return Describe();
  } catch (...) {
    return OutOfMemory();  // there was none for the description
  }
}

}  // namespace modelstore
