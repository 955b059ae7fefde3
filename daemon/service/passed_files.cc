#include "daemon/service/passed_files.h"

#include <chrono>
#include <string>
#include <utility>

namespace modelstore {
namespace {

constexpr auto kAnswerLimit = std::chrono::seconds(30);

}  // namespace

Result<UniqueFd> PassedFiles::Ask(size_t ordinal) {
  const MutexLock turn(turn_);
  {
    const MutexLock lock(mutex_);
    RETURN_IF_ERROR(ended_);
    asked_ = true;
    answer_.reset();
  }
  RETURN_IF_ERROR(answers_.SendJson("{\"open\":" + std::to_string(ordinal) + "}"));
  const auto deadline = std::chrono::steady_clock::now() + kAnswerLimit;
  const MutexLock lock(mutex_);
  while (!answer_ && ended_.ok() && changed_.WaitUntil(mutex_, deadline)) {
  }
  asked_ = false;
  if (answer_) return *std::exchange(answer_, std::nullopt);
  RETURN_IF_ERROR(ended_);
  return Unavailable("the client did not open one of its files again within " + std::to_string(kAnswerLimit.count()) +
                     " s");
}

bool PassedFiles::Give(Result<UniqueFd> answer) {
  const MutexLock lock(mutex_);
  if (!asked_ || answer_) return false;
  answer_.emplace(std::move(answer));
  changed_.NotifyAll();
  return true;
}

void PassedFiles::End(const Status& why) {
  const MutexLock lock(mutex_);
  ended_ = why;
  changed_.NotifyAll();
}

}  // namespace modelstore
