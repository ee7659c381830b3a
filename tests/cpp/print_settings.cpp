// Prints what the library makes of the environment, for test_environment.cpp: an environment is read once in a process.

#include <cstdio>

#include "invconv/invconv.hpp"

int main() {
  try {
    std::printf("threads %d\n", invconv::num_threads());
  } catch (const invconv::Error& error) {
    std::printf("%s\n", error.what());
  }
  try {
    std::printf("instruction set %s\n", invconv::instruction_set());
  } catch (const invconv::Error& error) {
    std::printf("%s\n", error.what());
  }
}
