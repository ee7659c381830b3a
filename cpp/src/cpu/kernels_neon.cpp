// NEON with fused multiply-add, which every 64-bit Arm processor has.

#define INVCONV_KERNELS kernels_neon
#define INVCONV_LEVEL "neon"
#define INVCONV_VECTOR_BYTES 16
#define INVCONV_BLOCK 16
#define INVCONV_ROWS 1
#define INVCONV_CHANNEL_VECTORS 4

#include "cpu/kernels.inl"
