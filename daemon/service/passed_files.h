// The files of a push that its client holds open, not the daemon: asked for when they are read (layer: daemon/service).
//
// Ask is called by those who work on the push, Give and End by the thread that listens to the client.
#pragma once

#include <cstddef>
#include <optional>

#include "codec/support/mutex.h"
#include "codec/support/status.h"
#include "codec/support/unique_fd.h"
#include "daemon/service/answer_stream.h"

namespace modelstore {

class PassedFiles {
 public:
  explicit PassedFiles(AnswerStream* answers) : answers_(*answers) {}

  // Has the client open its file `ordinal` (of those it named, in its order) and waits for the descriptor. One at a
  // time: others wait for their turn. Errors: the client's own; Unavailable (it does not answer); what End was given.
  Result<UniqueFd> Ask(size_t ordinal);
  // What the client answered. False when nobody had asked.
  bool Give(Result<UniqueFd> answer);
  // Nobody listens to the client any more.
  void End(const Status& why);

 private:
  AnswerStream& answers_;
  Mutex turn_ MS_ACQUIRED_BEFORE(mutex_);  // held by whoever asks
  Mutex mutex_;
  CondVar changed_;
  bool asked_ MS_GUARDED_BY(mutex_) = false;
  std::optional<Result<UniqueFd>> answer_ MS_GUARDED_BY(mutex_);
  Status ended_ MS_GUARDED_BY(mutex_);
};

}  // namespace modelstore
