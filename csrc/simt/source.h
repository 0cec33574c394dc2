// Where compiled code lies in the source, by the debug information that the compiler left.

#pragma once

#include "api.h"

namespace simt {

// Of a return address: the first frame, of those inlined there, that is neither the emulator's own
// nor a wrapper of an access, csrc/cuda/vector.h.
Site locate(const void* code);

}  // namespace simt
