#include "cli/terminal.h"

#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <cstring>

namespace modelstore {

bool IsTerminal(int fd) { return isatty(fd) == 1; }

unsigned TerminalWidth(int fd) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col != 0 ? size.ws_col : 80;
}

Style StyleOf(int fd, bool no_color) {
  const char* term = std::getenv("TERM");
  const char* disabled = std::getenv("NO_COLOR");
  Style style;
  const bool is_capable = term != nullptr && *term != '\0' && std::strcmp(term, "dumb") != 0;
  style.color = !no_color && is_capable && IsTerminal(fd) && !(disabled != nullptr && *disabled != '\0');
  std::setlocale(LC_CTYPE, "");
  style.unicode = std::strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
  style.width = TerminalWidth(fd);
  return style;
}

int WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

std::string ReadLine() {
  std::string line;
  char c = 0;
  while (read(STDIN_FILENO, &c, 1) == 1 && c != '\n') line += c;
  return line;
}

}  // namespace modelstore
