// The products of a layer in float16.
#include "entries.cuh"

#define FFKERN_ENTRY(...) FFKERN_ENTRIES(F16, f16, 2, __VA_ARGS__)
FFKERN_TILES_16BIT(FFKERN_ENTRY)
