// The CUDA backend, compiled for the host. The linker takes it in place of the library's own.

#include "backend.cu"
