// A process in which the kernel refuses system calls, as file systems do that lack an operation (layer: tests).
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

namespace modelstore {

struct RefusedCall {
  int number = 0;  // SYS_…
  int error = 0;   // errno
  // Of the call's arguments: refused only where this one is not 0; -1: always.
  int only_with_argument = -1;
};

// For this process and until it ends. False where the kernel has no filters.
inline bool RefuseCalls(const std::vector<RefusedCall>& calls) {
  std::vector<sock_filter> code;
  for (const RefusedCall& call : calls) {
    const bool looks = call.only_with_argument >= 0;
    const auto rest = static_cast<unsigned char>(looks ? 3 : 1);  // of the instructions about this call
    code.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
    code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(call.number), 0, rest));
    if (looks) {
      const auto argument = static_cast<unsigned>(offsetof(seccomp_data, args) + 8 * call.only_with_argument);
      code.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument));  // its low half
      code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0));
    }
    code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(call.error)));
  }
  code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace modelstore
