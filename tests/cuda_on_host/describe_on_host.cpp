// Plans in words, compiled for the host as the backend is.

#include "describe.cu"
