// Runs the tests, with the instruction set that INVCONV_ISA names where it names one. With --lesser it must not be the
// best one of this machine: with that the tests run anyway.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "invconv/invconv.hpp"
#include "processor.hpp"

namespace {

constexpr int skipped = 77;  // ctest's SKIP_RETURN_CODE, set in CMakeLists.txt

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const char* wanted = std::getenv("INVCONV_ISA"); wanted != nullptr && *wanted != '\0') {
    const auto levels = invconv::test::instruction_sets();
    const bool has_it = std::find(levels.begin(), levels.end(), wanted) != levels.end();
    try {
      const char* used = invconv::instruction_set();
      if (!has_it || wanted != std::string(used)) {
        std::printf("INVCONV_ISA=%s, but the library uses %s\n", wanted, used);
        return 1;
      }
      if (wanted == levels.back() && argc > 1 && std::string(argv[1]) == "--lesser") {
        std::printf("%s is the best instruction set of this machine\n", wanted);
        return skipped;
      }
    } catch (const invconv::Error& error) {
      std::printf("%s\n", error.what());
      return has_it ? 1 : skipped;
    }
  }
  return RUN_ALL_TESTS();
}
