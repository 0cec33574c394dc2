// For kernels that were written for nvcc.
#pragma once
#include "../simt.h"
