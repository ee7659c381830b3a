#include "cpu/dispatch.hpp"

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace invconv::detail::cpu {

namespace {

template <class T>
struct Level {
  std::string_view name;
  Kernels<T> (*kernels)();
};

/// The instruction sets of this machine, the best one last.
template <class T>
std::vector<Level<T>> levels() {
#if defined(INVCONV_NEON)
  return {{"neon", kernels_neon<T>}};
#else
  std::vector<Level<T>> found{{"baseline", kernels_baseline<T>}};
#if defined(INVCONV_AVX2)
  // Every processor with AVX2 has F16C, which older compilers cannot ask for.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back({"avx2", kernels_avx2<T>});
  }
#endif
#if defined(INVCONV_AVX512)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    found.push_back({"avx512", kernels_avx512<T>});
  }
#endif
  return found;
#endif
}

template <class T>
Kernels<T> chosen_kernels() {
  const std::vector<Level<T>> known = levels<T>();
  const char* text = std::getenv("INVCONV_ISA");
  if (text == nullptr || *text == '\0') {
    return known.back().kernels();
  }
  std::string names;
  for (const Level<T>& level : known) {
    if (level.name == text) {
      return level.kernels();
    }
    names += names.empty() ? "" : ", ";
    names += level.name;
  }
  throw Error("[instruction_set] expected INVCONV_ISA to be one of those this machine has (" + names + "), but got \"" +
              text + "\"");
}

}  // namespace

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> chosen = chosen_kernels<T>();
  return chosen;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<float16>& kernels<float16>();
template const Kernels<bfloat16>& kernels<bfloat16>();

}  // namespace invconv::detail::cpu
