// What a program does before anything else (layer: codec/support). Call from main, while there is one thread.
#pragma once

namespace modelstore {

// Opens /dev/null, for reading, as each of standard input, output and error that is closed: else a file of the store
// would get that number, and messages would be written into it. Writing to such a stream fails, as before.
void ReserveStandardStreams();

// Raises the soft limit of open descriptors to the hard one: a store and the files of a large model are many.
void RaiseDescriptorLimit();

}  // namespace modelstore
