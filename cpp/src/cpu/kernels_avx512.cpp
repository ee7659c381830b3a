// AVX-512 F, VL, DQ and BW.

#define INVCONV_KERNELS kernels_avx512
#define INVCONV_LEVEL "avx512"
#define INVCONV_VECTOR_BYTES 64
#define INVCONV_BLOCK 24
#define INVCONV_ROWS 2
#define INVCONV_CHANNEL_VECTORS 6

#include "cpu/kernels.inl"
