#pragma once

#include <string>
#include <vector>

namespace invconv::test {

/// The instruction sets that this build of the library must have on this machine, the best one last.
inline std::vector<std::string> instruction_sets() {
#if defined(__aarch64__)
  return {"neon"};
#else
  std::vector<std::string> names{"baseline"};
#if defined(INVCONV_AVX2)
  // The avx2 kernels also need F16C, which Clang 14 cannot ask for; no processor has AVX2 without it.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    names.push_back("avx2");
  }
#endif
#if defined(INVCONV_AVX512)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    names.push_back("avx512");
  }
#endif
  return names;
#endif
}

}  // namespace invconv::test
