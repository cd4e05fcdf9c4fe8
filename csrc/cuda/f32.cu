// The products of a layer in float32, without tensor cores.
#include "entries.cuh"

#define FFKERN_ENTRY(...) FFKERN_ENTRIES(F32, f32, 4, __VA_ARGS__)
FFKERN_TILES_32BIT(FFKERN_ENTRY)
