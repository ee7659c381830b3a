// Whatever the compiler's own default is: SSE2 on x86-64.

#define INVCONV_KERNELS kernels_baseline
#define INVCONV_LEVEL "baseline"
#define INVCONV_VECTOR_BYTES 16
#define INVCONV_BLOCK 8
#define INVCONV_ROWS 2
#define INVCONV_CHANNEL_VECTORS 2

#include "cpu/kernels.inl"
