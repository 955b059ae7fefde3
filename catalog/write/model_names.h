// Names of models in the store (layer: catalog/write; private). Call with publish_mutex() held when the answer must
// stay true.
#pragma once

#include <string>

#include "catalog/store/kv_store.h"
#include "codec/support/status.h"

namespace modelstore {

// `name` could be published: no model has it, none is named like one of its parents (`a` for `a/b`) or lies below it.
// `leaving`: a model that goes away in the same batch ("" for none). Errors: AlreadyExists, Io.
Status CheckNameIsFree(const KvReader& store, const std::string& name, const std::string& leaving = "");

// Adds to the batch that takes `name` away, and gives its model the name `to` ("" when it is removed): when the folders
// above changed. Errors: Io.
Status NoteInFolders(const KvStore& store, const std::string& name, const std::string& to, WriteBatch* batch);

}  // namespace modelstore
