#include "codec/support/status.h"

#include <cerrno>
#include <exception>
#include <system_error>

namespace modelstore {
namespace {

struct CodeRow {
  StatusCode code;
  std::string_view name;
  int error_number;
  int exit_code;
  int wire;  // never renumber
};

constexpr CodeRow kCodes[kStatusCodeCount] = {
    {StatusCode::kOk, "ok", 0, 0, 0},
    {StatusCode::kNotFound, "not_found", ENOENT, 3, 1},
    {StatusCode::kAlreadyExists, "already_exists", EEXIST, 4, 2},
    {StatusCode::kInvalidArgument, "invalid_argument", EINVAL, 2, 3},
    {StatusCode::kCorruption, "corruption", EIO, 12, 4},
    {StatusCode::kUnsupported, "unsupported", ENOTSUP, 1, 5},
    {StatusCode::kIo, "io", EIO, 1, 6},
    {StatusCode::kNoSpace, "no_space", ENOSPC, 14, 7},
    {StatusCode::kResourceExhausted, "resource_exhausted", ENOMEM, 1, 8},
    {StatusCode::kBusy, "busy", EBUSY, 1, 9},
    {StatusCode::kLocked, "locked", EBUSY, 11, 10},
    {StatusCode::kHasDependents, "has_dependents", EBUSY, 13, 11},
    {StatusCode::kPermissionDenied, "permission_denied", EACCES, 15, 12},
    {StatusCode::kUnavailable, "unavailable", EHOSTDOWN, 10, 13},
    {StatusCode::kCancelled, "cancelled", EINTR, 130, 14},
    {StatusCode::kInternal, "internal", EIO, 1, 15},
};

const CodeRow& Row(StatusCode code) {
  const auto i = static_cast<unsigned>(code);
  return kCodes[i < kStatusCodeCount ? i : kStatusCodeCount - 1];
}

}  // namespace

std::string_view StatusCodeName(StatusCode code) { return Row(code).name; }
int StatusCodeErrno(StatusCode code) { return Row(code).error_number; }
int StatusCodeExit(StatusCode code) { return Row(code).exit_code; }
int StatusCodeWire(StatusCode code) { return Row(code).wire; }

StatusCode StatusCodeFromWire(int number) {
  for (const CodeRow& row : kCodes)
    if (row.wire == number) return row.code;
  return StatusCode::kInternal;
}

StatusCode StatusCodeFromName(std::string_view name) {
  for (const CodeRow& row : kCodes)
    if (row.name == name) return row.code;
  return StatusCode::kInternal;
}

std::string Status::ToString() const {
  if (ok()) return "ok";
  return std::string(StatusCodeName(code())) + ": " + rep_->message;
}

// Without the context where there is no memory for it: the failure counts.
Status Status::WithContext(std::string_view context) const {
  if (ok()) return *this;
  try {
    return Status(code(), std::string(context) + ": " + rep_->message);
  } catch (const std::exception&) {
    return *this;
  }
}

Status StatusFromErrno(int error_number, std::string_view what) {
  StatusCode code = StatusCode::kIo;
  switch (error_number) {
    case ENOENT:
      code = StatusCode::kNotFound;
      break;
    case EEXIST:
      code = StatusCode::kAlreadyExists;
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      code = StatusCode::kPermissionDenied;
      break;
    case ENOSPC:
    case EDQUOT:
      code = StatusCode::kNoSpace;
      break;
    case ENOMEM:
    case EAGAIN:
    case EFBIG:
    case EMFILE:
    case ENFILE:
      code = StatusCode::kResourceExhausted;
      break;
    case EINTR:
      code = StatusCode::kCancelled;
      break;
    default:
      break;
  }
  return Status(code, std::string(what) + ": " + std::generic_category().message(error_number));
}

}  // namespace modelstore
