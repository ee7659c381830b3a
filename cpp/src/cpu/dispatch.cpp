#include "cpu/dispatch.hpp"

#include <cstdlib>
#include <string>
#include <string_view>

namespace invconv::detail::cpu {

namespace {

enum class Level { baseline, avx2, avx512 };

Level best_level() {
#if defined(INVCONV_X86)
  // Every processor with AVX2 has F16C, which older compilers cannot ask for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    return Level::avx512;
  }
  if (avx2) {
    return Level::avx2;
  }
#endif
  return Level::baseline;
}

Level chosen_level() {
  const Level best = best_level();
  const char* text = std::getenv("INVCONV_ISA");
  if (text == nullptr || *text == '\0') {
    return best;
  }
  constexpr std::string_view names[] = {"baseline", "avx2", "avx512"};
  for (int level = 0; level <= static_cast<int>(best); ++level) {
    if (names[level] == text) {
      return static_cast<Level>(level);
    }
  }
  std::string known;
  for (int level = 0; level <= static_cast<int>(best); ++level) {
    known += level > 0 ? ", " : "";
    known += names[level];
  }
  throw Error("[instruction_set] expected INVCONV_ISA to be one of those this machine has (" + known + "), but got \"" +
              text + "\"");
}

}  // namespace

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> chosen = [] {
#if defined(INVCONV_X86)
    switch (chosen_level()) {
      case Level::avx512:
        return kernels_avx512<T>();
      case Level::avx2:
        return kernels_avx2<T>();
      case Level::baseline:
        break;
    }
#else
    chosen_level();
#endif
    return kernels_baseline<T>();
  }();
  return chosen;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<float16>& kernels<float16>();
template const Kernels<bfloat16>& kernels<bfloat16>();

}  // namespace invconv::detail::cpu
