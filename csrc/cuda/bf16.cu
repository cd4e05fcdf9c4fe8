// The products of a layer in bfloat16.
#include "entries.cuh"

#define FFKERN_ENTRY(...) FFKERN_ENTRIES(Bf16, bf16, 2, __VA_ARGS__)
FFKERN_TILES_16BIT(FFKERN_ENTRY)
