// AVX2, FMA and F16C.

#define INVCONV_KERNELS kernels_avx2
#define INVCONV_LEVEL "avx2"
#define INVCONV_VECTOR_BYTES 32
#define INVCONV_BLOCK 12
#define INVCONV_ROWS 2
#define INVCONV_CHANNEL_VECTORS 2

#include "cpu/kernels.inl"
