// Stands in for cuda/ in a build without it.

#include "backend.hpp"

namespace invconv::detail::cuda {

namespace {
[[noreturn]] void refuse() {
  throw Error("[cuda] this build of invconv has no CUDA kernels; use the CPU, or build it where nvcc is found");
}
}  // namespace

template <class T>
std::size_t workspace_size(Operation, const Sizes&, const Cuda&) {
  refuse();
}

template <class T>
void run(const Filter<T>&, void*, const Cuda&) {
  refuse();
}

template <class T>
void run(const Correlation<T>&, void*, const Cuda&) {
  refuse();
}

template <class T>
bool has_both_gradients(const Sizes&, const Cuda&, std::size_t) {
  refuse();
}

template <class T>
void run(const Filter<T>&, const Correlation<T>&, void*, const Cuda&) {
  refuse();
}

template <class T>
PlanInfo describe(Operation, const Sizes&, const Cuda&, std::size_t) {
  refuse();
}

void synchronize(const Cuda&) { refuse(); }
CudaInfo info() { return {}; }
int devices() { return 0; }
bool has_kernels() { return false; }

#define INVCONV_INSTANTIATE(T)                                                      \
  template std::size_t workspace_size<T>(Operation, const Sizes&, const Cuda&);     \
  template PlanInfo describe<T>(Operation, const Sizes&, const Cuda&, std::size_t); \
  template void run<T>(const Filter<T>&, void*, const Cuda&);                       \
  template void run<T>(const Correlation<T>&, void*, const Cuda&);                  \
  template bool has_both_gradients<T>(const Sizes&, const Cuda&, std::size_t);      \
  template void run<T>(const Filter<T>&, const Correlation<T>&, void*, const Cuda&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cuda
