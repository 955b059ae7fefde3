// Runs a libFuzzer target without libFuzzer: NAME_fuzz CORPUS_DIR MUTATIONS
//
// Feeds every file of the corpus, then MUTATIONS inputs made from them by a fixed generator, so that a run is the same
// on every machine. When the target crashes, the input is left in ./crash-input.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

using Input = std::vector<uint8_t>;

const Input* current = nullptr;

void SaveCurrent() {
  const int fd = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const bool saved = fd >= 0 && write(fd, current->data(), current->size()) == static_cast<ssize_t>(current->size());
  constexpr char kSaved[] = "the input is in ./crash-input\n";
  constexpr char kLost[] = "the input could not be saved\n";
  if (write(STDERR_FILENO, saved ? kSaved : kLost, saved ? sizeof(kSaved) - 1 : sizeof(kLost) - 1) < 0) _exit(1);
}

void OnSignal(int number) {
  SaveCurrent();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

void Run(const Input& input) {
  current = &input;
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

class Mutator {
 public:
  explicit Mutator(const std::vector<Input>& seeds) : seeds_(seeds) {}

  Input Next() {
    Input out = Pick();
    for (uint64_t edits = 1 + Below(4); edits > 0; --edits) Edit(out);
    return out;
  }

 private:
  // splitmix64
  uint64_t Random() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return n == 0 ? 0 : Random() % n; }
  const Input& Pick() { return seeds_[Below(seeds_.size())]; }

  void Edit(Input& in) {
    constexpr uint64_t kTelling[] = {0,      1,          0x7f,       0x80,         0xff,
                                     0xffff, 0x7fffffff, 0xffffffff, ~uint64_t{0}, uint64_t{1} << 63};
    const uint64_t at = Below(in.size());
    switch (Below(8)) {
      case 0:
        in.resize(at);
        break;
      case 1:
        if (!in.empty()) in[at] ^= static_cast<uint8_t>(1u << Below(8));
        break;
      case 2:
        if (!in.empty()) in[at] = static_cast<uint8_t>(Random());
        break;
      case 3: {
        const uint64_t value = kTelling[Below(std::size(kTelling))];
        std::memcpy(in.data() + at, &value, std::min<size_t>(size_t{1} << Below(4), in.size() - at));
        break;
      }
      case 4:
        in.erase(in.begin() + at, in.begin() + at + Below(std::min<uint64_t>(in.size() - at, 64) + 1));
        break;
      case 5:
        in.insert(in.begin() + at, 1 + Below(16), static_cast<uint8_t>(Random()));
        break;
      case 6: {
        const uint64_t n = Below(std::min<uint64_t>(in.size() - at, 256) + 1);
        const Input copy(in.begin() + at, in.begin() + at + n);
        in.insert(in.begin() + Below(in.size() + 1), copy.begin(), copy.end());
        break;
      }
      default: {
        const Input& other = Pick();
        const uint64_t from = Below(other.size());
        in.resize(at);
        in.insert(in.end(), other.begin() + from, other.end());
      }
    }
  }

  const std::vector<Input>& seeds_;
  uint64_t state_ = 0;
};

std::vector<Input> ReadCorpus(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Input> seeds;
  for (const auto& path : paths) {
    std::ifstream in(path, std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return seeds;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS_DIR MUTATIONS\n", argv[0]);
    return 2;
  }
  const std::vector<Input> seeds = ReadCorpus(argv[1]);
  if (seeds.empty()) {
    std::fprintf(stderr, "%s: no seeds in %s\n", argv[0], argv[1]);
    return 1;
  }
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(SaveCurrent);
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(number, OnSignal);
  const Input empty;
  Run(empty);
  for (const Input& seed : seeds) Run(seed);
  const long mutations = std::strtol(argv[2], nullptr, 10);
  Mutator mutator(seeds);
  for (long i = 0; i < mutations; ++i) Run(mutator.Next());
  std::printf("%zu seeds and %ld mutations\n", seeds.size(), mutations);
  return 0;
}
