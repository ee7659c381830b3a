// The CPU backend: filter.cpp and correlation.cpp run the problems, this joins what they ask for.

#include "cpu/sizes.hpp"

namespace invconv::detail::cpu {

template <class T>
std::size_t workspace_size(Operation operation, const Sizes& full, const Cpu& execution) {
  if (is_empty(full)) {
    return 0;
  }
  const Sizes s = clipped(images_as_groups(full));
  return operation == Operation::weight_grad ? correlation_workspace<T>(s, execution)
                                             : filter_workspace<T>(operation, s, execution);
}

#define INVCONV_INSTANTIATE(T) template std::size_t workspace_size<T>(Operation, const Sizes&, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cpu
