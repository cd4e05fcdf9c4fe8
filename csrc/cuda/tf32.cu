// The products of a layer on the tensor cores in tf32: one product, or three for nearly float32.
#include "entries.cuh"

#define FFKERN_ENTRY(...) FFKERN_ENTRIES(Tf32, tf32, 4, __VA_ARGS__)
FFKERN_TILES_32BIT(FFKERN_ENTRY)
#undef FFKERN_ENTRY
#define FFKERN_ENTRY(...) FFKERN_ENTRIES(Tf32x3, tf32x3, 4, __VA_ARGS__)
FFKERN_TILES_32BIT(FFKERN_ENTRY)
