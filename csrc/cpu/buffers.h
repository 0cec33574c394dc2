// Recycling of array buffers; see buffers.cpp.

#pragma once

#include <pybind11/pybind11.h>

namespace minitorch {

void bind_buffers(pybind11::module_& module);

}  // namespace minitorch
