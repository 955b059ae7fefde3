// Status and Result: the only way an error travels in modelstore (layer: codec/support).
//
// A Status is a null pointer when OK, so success costs nothing. A failure carries a code that says what the caller
// should do, a message for an administrator (object, expected, found, remedy) and a chain of contexts. One table maps
// each code to errno, exit code and wire number. Values are immutable after construction and safe to copy between
// threads.
#pragma once

#include <cassert>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace modelstore {

enum class StatusCode : unsigned char {
  kOk = 0,
  kNotFound,           // the named object does not exist
  kAlreadyExists,      // the name is taken
  kInvalidArgument,    // the caller's words are wrong
  kCorruption,         // stored or supplied bytes contradict themselves
  kUnsupported,        // well formed, but of a kind or version this build does not know
  kIo,                 // the operating system failed a read or write
  kNoSpace,            // no room on the device
  kResourceExhausted,  // a limit or budget of this process would be exceeded
  kBusy,               // try again later
  kLocked,             // another process holds the store
  kHasDependents,      // others are stored against this object
  kPermissionDenied,   // the caller lacks the right
  kUnavailable,        // no store or daemon answers
  kCancelled,          // the user or a shutdown stopped it
  kInternal,           // a bug in modelstore
};
inline constexpr int kStatusCodeCount = 16;

// Stable lower-case name of a code ("not_found"): JSON's error.code.
std::string_view StatusCodeName(StatusCode code);
// errno for the mount; never 0 for a failure.
int StatusCodeErrno(StatusCode code);
// Exit code of the command line (0 for kOk), as in the interface's table.
int StatusCodeExit(StatusCode code);
// Stable number for the wire and its inverse; an unknown number is kInternal.
int StatusCodeWire(StatusCode code);
StatusCode StatusCodeFromWire(int number);
// The inverse of StatusCodeName; an unknown name is kInternal.
StatusCode StatusCodeFromName(std::string_view name);

class [[nodiscard]] Status {
 public:
  Status() = default;  // OK
  Status(StatusCode code, std::string message) : rep_(std::make_shared<const Rep>(Rep{code, std::move(message)})) {
    assert(code != StatusCode::kOk);
  }

  bool ok() const { return rep_ == nullptr; }
  StatusCode code() const { return rep_ ? rep_->code : StatusCode::kOk; }
  // "" when OK; else contexts, outermost first, then the message, joined by ": ".
  std::string_view message() const { return rep_ ? std::string_view(rep_->message) : std::string_view(); }
  // "corruption: reading tensor x: ..." for logs.
  std::string ToString() const;

  // The same failure with `context` put before the message; OK stays OK.
  Status WithContext(std::string_view context) const;

 private:
  struct Rep {
    StatusCode code;
    std::string message;
  };
  std::shared_ptr<const Rep> rep_;
};

inline Status OkStatus() { return Status(); }
inline Status NotFound(std::string m) { return Status(StatusCode::kNotFound, std::move(m)); }
inline Status AlreadyExists(std::string m) { return Status(StatusCode::kAlreadyExists, std::move(m)); }
inline Status InvalidArgument(std::string m) { return Status(StatusCode::kInvalidArgument, std::move(m)); }
inline Status Corruption(std::string m) { return Status(StatusCode::kCorruption, std::move(m)); }
inline Status Unsupported(std::string m) { return Status(StatusCode::kUnsupported, std::move(m)); }
inline Status IoError(std::string m) { return Status(StatusCode::kIo, std::move(m)); }
inline Status NoSpace(std::string m) { return Status(StatusCode::kNoSpace, std::move(m)); }
inline Status ResourceExhausted(std::string m) { return Status(StatusCode::kResourceExhausted, std::move(m)); }
inline Status Busy(std::string m) { return Status(StatusCode::kBusy, std::move(m)); }
inline Status Locked(std::string m) { return Status(StatusCode::kLocked, std::move(m)); }
inline Status HasDependents(std::string m) { return Status(StatusCode::kHasDependents, std::move(m)); }
inline Status PermissionDenied(std::string m) { return Status(StatusCode::kPermissionDenied, std::move(m)); }
inline Status Unavailable(std::string m) { return Status(StatusCode::kUnavailable, std::move(m)); }
inline Status Cancelled(std::string m) { return Status(StatusCode::kCancelled, std::move(m)); }
inline Status Internal(std::string m) { return Status(StatusCode::kInternal, std::move(m)); }

// The failure that `error_number` (errno) stands for, naming what was attempted: "opening /a/b: Permission denied".
Status StatusFromErrno(int error_number, std::string_view what);

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : v_(std::in_place_index<1>, std::move(status)) { assert(!this->status().ok()); }  // NOLINT

  bool ok() const { return v_.index() == 0; }
  Status status() const { return ok() ? Status() : std::get<1>(v_); }
  T& value() & { return assert(ok()), std::get<0>(v_); }
  const T& value() const& { return assert(ok()), std::get<0>(v_); }
  T&& value() && { return assert(ok()), std::get<0>(std::move(v_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::variant<T, Status> v_;
};

#define MS_CONCAT_INNER(a, b) a##b
#define MS_CONCAT(a, b) MS_CONCAT_INNER(a, b)

// Returns from the enclosing function when `expr` (a Status) failed.
#define RETURN_IF_ERROR(expr)                                                       \
  do {                                                                              \
    if (::modelstore::Status ms_status = (expr); !ms_status.ok()) return ms_status; \
  } while (0)

// ASSIGN_OR_RETURN(auto x, F()): declares x from a Result or returns its failure.
#define ASSIGN_OR_RETURN(decl, expr) MS_ASSIGN_OR_RETURN_INNER(MS_CONCAT(ms_result_, __LINE__), decl, expr)
#define MS_ASSIGN_OR_RETURN_INNER(tmp, decl, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return tmp.status();              \
  decl = std::move(tmp).value()

}  // namespace modelstore
