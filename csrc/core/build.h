// What this library was built with.
#pragma once
#include "api.h"

/// A JSON object: version, compiler, instruction sets, nvcc and CUDA architectures, torch of the Python package.
/// C linkage, so that it can be asked for without knowing C++ (ctypes).
extern "C" FFKERN_API const char* ffkern_build_info();
