// The first start of a GPU's driver, in a child process: one that crashes or hangs takes nobody down (layer:
// gpu/engine).
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

// Drivers of many GPUs take some seconds to start.
inline constexpr auto kProbeLimit = std::chrono::seconds(60);

// Runs `command` with the plug-in's path and the device's number as two more arguments; it must end in ProbeMain. Once
// `stop_fd` is readable the child is killed. Errors: Unavailable, with what the child said, or how it ended; Cancelled.
Status ProbeInChild(const std::vector<std::string>& command, const std::string& plugin, int device,
                    std::chrono::seconds limit = kProbeLimit, int stop_fd = -1);

// What the child does: loads the plug-in and checks that the device decodes AwkwardBlocks to the CPU's bytes. Its exit
// code; says on standard output what is wrong.
int ProbeMain(const std::string& plugin, const std::string& device);

// The same in this process. Errors: as Plugin's, Unavailable (it decodes wrongly).
Status CheckDevice(const std::string& plugin, int device);

}  // namespace modelstore
