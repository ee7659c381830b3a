#pragma once

#include "cpu/kernels.hpp"

namespace invconv::detail::cpu {

/// The kernels of the best instruction set of this machine, or of the one that INVCONV_ISA names.
template <class T>
const Kernels<T>& kernels();

}  // namespace invconv::detail::cpu
