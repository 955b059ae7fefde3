// What the standard streams can show, and writing to them (layer: cli).
#pragma once

#include <string>
#include <string_view>

#include "cli/format.h"

namespace modelstore {

bool IsTerminal(int fd);
unsigned TerminalWidth(int fd);  // columns; 80 when it is no terminal
// Colours only on a terminal that has them, with neither --no-color nor NO_COLOR; unicode by the locale.
Style StyleOf(int fd, bool no_color);
// Writes everything. Returns 0 or the errno of the write that failed.
int WriteAll(int fd, std::string_view text);
// One line from stdin, without its end; "" at the end of input.
std::string ReadLine();

}  // namespace modelstore
