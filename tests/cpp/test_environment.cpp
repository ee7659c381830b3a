// INVCONV_NUM_THREADS, OMP_NUM_THREADS and INVCONV_ISA, each in a process of its own.

#include <cstdio>

#include "processor.hpp"
#include "support.hpp"

namespace invconv::test {
namespace {

struct Settings {
  std::string threads, instruction_set;  // a line each
};

/// What print_settings prints with these assignments, as in "A=1 B=2", and nothing else of ours set.
Settings settings(const std::string& assignments) {
  const std::string command =
      "env -u INVCONV_NUM_THREADS -u OMP_NUM_THREADS -u INVCONV_ISA " + assignments + " " INVCONV_PRINT_SETTINGS;
  std::string output;
  std::FILE* const pipe = popen(command.c_str(), "r");
  for (int letter; pipe != nullptr && (letter = std::fgetc(pipe)) != EOF;) {
    output += static_cast<char>(letter);
  }
  EXPECT_TRUE(pipe != nullptr && pclose(pipe) == 0) << command;
  const std::size_t end = output.find('\n');
  return {output.substr(0, end), output.substr(end + 1, output.size() - end - 2)};
}

std::string threads_with(const std::string& assignments) { return settings(assignments).threads; }

TEST(Environment, InvconvNumThreadsComesFirst) {
  EXPECT_EQ(threads_with("INVCONV_NUM_THREADS=3"), "threads 3");
  EXPECT_EQ(threads_with("INVCONV_NUM_THREADS=3 OMP_NUM_THREADS=5"), "threads 3");
  EXPECT_EQ(threads_with("INVCONV_NUM_THREADS=1024"), "threads 1024");
}

TEST(Environment, OmpNumThreadsComesSecond) {
  EXPECT_EQ(threads_with("OMP_NUM_THREADS=5"), "threads 5");
  EXPECT_EQ(threads_with("INVCONV_NUM_THREADS= OMP_NUM_THREADS=5"), "threads 5");
  EXPECT_EQ(threads_with("OMP_NUM_THREADS=5,2"), "threads 5") << "the first level of nesting";
}

TEST(Environment, ProcessorsComeLast) {
  const std::string processors = threads_with("");
  EXPECT_EQ(processors.rfind("threads ", 0), 0u);
  EXPECT_GE(std::stoi(processors.substr(8)), 1);
  EXPECT_EQ(threads_with("OMP_NUM_THREADS="), processors);
  EXPECT_EQ(threads_with("OMP_NUM_THREADS=many"), processors) << "OpenMP's variable is not ours to refuse";
}

TEST(Environment, NumThreadsAreValidated) {
  for (const std::string text : {"0", "-1", "1025", "two", "2x", "1.5", "99999999999999999999"}) {
    EXPECT_EQ(threads_with("INVCONV_NUM_THREADS=" + text),
              "[num_threads] expected INVCONV_NUM_THREADS from 1 to 1024, but got \"" + text + "\"");
  }
}

TEST(Environment, InstructionSetIsTheOneThatIsAskedFor) {
  const std::vector<std::string> levels = instruction_sets();
  std::string known;
  for (const std::string& level : levels) {
    known += (known.empty() ? "" : ", ") + level;
  }
  EXPECT_EQ(settings("").instruction_set, "instruction set " + levels.back()) << "the best is not the default";
  EXPECT_EQ(settings("INVCONV_ISA=").instruction_set, "instruction set " + levels.back());
  for (const std::string level : {"baseline", "avx2", "avx512", "neon", "AVX2", "sse"}) {
    const bool has_it = std::find(levels.begin(), levels.end(), level) != levels.end();
    EXPECT_EQ(settings("INVCONV_ISA=" + level).instruction_set,
              has_it ? "instruction set " + level
                     : "[instruction_set] expected INVCONV_ISA to be one of those this machine has (" + known +
                           "), but got \"" + level + "\"");
  }
}

}  // namespace
}  // namespace invconv::test
