// The handlers behind the table in handlers.h, by group (layer: daemon; private to it).
#pragma once

#include <string>

#include "daemon/handlers/handlers.h"

namespace modelstore {

// push_handler.cc. {path (absolute; instead of Request::source), name?, base? ("auto", "none" or a model), fidelity?
// ("exact", "compact"), update?, allow_compact?, and how (compact_parameters.h)}; {name, base?, and how}
Result<std::string> HandlePush(Catalog& catalog, const Request& request);
Result<std::string> HandleCompact(Catalog& catalog, const Request& request);
// What a push answers, of `files` files.
std::string PushDocument(Catalog& catalog, const Caller& caller, const PushReport& report, size_t files);

// derive_handler.cc. {source, name, drop_layers, keep_layers or slice (a number) and
// basis? ("block", "global"), layer_names?, update?}
Result<std::string> HandleDerive(Catalog& catalog, const Request& request);

// list_handlers.cc. {}, {name}, {}
Result<std::string> HandleLs(Catalog& catalog, const Request& request);
Result<std::string> HandleShow(Catalog& catalog, const Request& request);
Result<std::string> HandleReport(Catalog& catalog, const Request& request);

// change_handlers.cc. {from, to}, {name, dry_run?}, {dry_run?}
Result<std::string> HandleRename(Catalog& catalog, const Request& request);
Result<std::string> HandleRm(Catalog& catalog, const Request& request);
Result<std::string> HandlePrune(Catalog& catalog, const Request& request);

// check_handlers.cc. {names?}, {name, dir (absolute)}
Result<std::string> HandleVerify(Catalog& catalog, const Request& request);
Result<std::string> HandleExport(Catalog& catalog, const Request& request);

// status_handler.cc. {}; Request::complete_status adds what only the daemon knows (mount, jobs, clients).
Result<std::string> HandleStatus(Catalog& catalog, const Request& request);

}  // namespace modelstore
