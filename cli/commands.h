// Every command, one .cc file each, and how it shows its JSON document to people (layer: cli).
//
// The renderings are pure: from the document that --json would print to the text, so that both say the same.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "cli/command.h"
#include "cli/format.h"

namespace modelstore {

CommandSpec PushCommand();
CommandSpec CompactCommand();
CommandSpec DeriveCommand();
CommandSpec LsCommand();
CommandSpec ShowCommand();
CommandSpec RenameCommand();
CommandSpec ReportCommand();
CommandSpec VerifyCommand();
CommandSpec ExportCommand();
CommandSpec RmCommand();
CommandSpec PruneCommand();
CommandSpec WarmCommand();
CommandSpec StatusCommand();
CommandSpec DoctorCommand();
CommandSpec MountCommand();
CommandSpec UnmountCommand();

// In the order of the help.
std::span<const CommandSpec> Commands();

std::string RenderPush(std::string_view document, const Style& style);
std::string RenderLs(std::string_view document, bool tree, const Style& style);
std::string RenderShow(std::string_view document, const Style& style);
std::string RenderReport(std::string_view document, const Style& style);
std::string RenderReportHtml(std::string_view document);  // a page that needs no other file
std::string RenderVerify(std::string_view document, const Style& style);
std::string RenderExport(std::string_view document, const Style& style);
std::string RenderRm(std::string_view document, const Style& style);
std::string RenderWarm(std::string_view document, const Style& style);
std::string RenderStatus(std::string_view document, const Style& style);
std::string RenderDoctor(std::string_view document, const Style& style);
std::string RenderPrune(std::string_view document, const Style& style);

}  // namespace modelstore
