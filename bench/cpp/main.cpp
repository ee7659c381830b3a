// The core alone, without Python, and this machine's limits. `python -m bench` says what to run and reads the JSON:
//
//     invconv_bench --shape NAME=BATCH,CHANNELS,HEIGHT,WIDTH,KERNEL ... --threads N ...
//                   --run solve|solve_transpose|conv|weight_grad|solve_backward|plain_solve|peak|chain|copy|
//                         hand_over ...
//                   --copy BYTES ... --seconds S --repetitions R --benchmark_format=json
//
// Names in the output: solve:NAME:N, peak:N, chain:1, copy:BYTES:N, hand_over:2. The time of chain is that of 1000
// multiply-adds, that of hand_over the time in which two threads wait 1000 times for each other;
// peak and copy have rates: operations and bytes (read and written) a second, of all threads together.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "invconv/invconv.hpp"
#include "machine_code.hpp"

namespace invconv::bench {
namespace {

MachineCode machine_code() {
#if defined(INVCONV_BENCH_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw")) {
    return avx512();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2();
  }
#endif
  return baseline();
}

// ---- problems -----------------------------------------------------------------------------------------------------

std::vector<float> random_values(std::size_t size, float scale) {
  std::vector<float> values(size);
  std::minstd_rand random(1);
  const float unit = 2 * scale / static_cast<float>(std::minstd_rand::max());
  for (float& value : values) {
    value = static_cast<float>(random()) * unit - scale;
  }
  return values;
}

std::size_t size_of(const Shape& shape) { return static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]); }

/// Images, others of the same shape, a weight whose inverse does not grow, and room for either result.
struct Problem {
  explicit Problem(const Shape& image_shape, std::int64_t kernel)
      : image(image_shape),
        taps{image[1], image[1], kernel, kernel},
        images(random_values(size_of(image), 1.7f)),
        others(images.rbegin(), images.rend()),
        result(images.size()),
        weight(random_values(size_of(taps),
                             0.5f / (static_cast<float>(kernel) * std::sqrt(static_cast<float>(image[1]))))),
        weight_result(weight.size()) {}

  View<const float> view(const std::vector<float>& of) const { return View<const float>::contiguous(of.data(), image); }
  View<const float> weight_view() const { return View<const float>::contiguous(weight.data(), taps); }
  View<float> result_view() { return View<float>::contiguous(result.data(), image); }
  View<float> weight_result_view() { return View<float>::contiguous(weight_result.data(), taps); }

  Shape image, taps;
  std::vector<float> images, others, result, weight, weight_result;
};

/// Made when it is first used, and kept: the repetitions of one benchmark lie far apart.
using Lazy = std::shared_ptr<std::unique_ptr<Problem>>;

Problem& made(const Lazy& lazy, const Shape& image, std::int64_t kernel) {
  if (!*lazy) {
    *lazy = std::make_unique<Problem>(image, kernel);
  }
  return **lazy;
}

/// The largest error of the result against a solve in double, relative to the largest value; of the first pixels of
/// the first image, which depend on no others.
double solve_error(const Problem& problem) {
  Shape crop = problem.image;
  crop[0] = std::min<std::int64_t>(crop[0], 1);
  crop[2] = std::min<std::int64_t>(crop[2], 256);
  crop[3] = std::min<std::int64_t>(crop[3], 256);
  const auto all = View<const float>::contiguous(problem.images.data(), problem.image);
  const std::vector<double> weight(problem.weight.begin(), problem.weight.end());
  std::vector<double> y(size_of(crop)), x(y.size());
  std::vector<float> result(y.size());
  std::size_t at = 0;
  for (std::int64_t c = 0; c < crop[1]; ++c) {
    for (std::int64_t i = 0; i < crop[2]; ++i) {
      for (std::int64_t j = 0; j < crop[3]; ++j, ++at) {
        const auto from = static_cast<std::size_t>(c * all.stride[1] + i * all.stride[2] + j);
        y[at] = problem.images[from];
        result[at] = problem.result[from];
      }
    }
  }
  solve<double>(View<double>::contiguous(y.data(), crop), View<const double>::contiguous(weight.data(), problem.taps),
                View<double>::contiguous(x.data(), crop), {}, {}, Cpu{1});
  double error = 0, largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error = std::max(error, std::abs(result[i] - x[i]));
    largest = std::max(largest, std::abs(x[i]));
  }
  return largest > 0 ? error / largest : error;
}

void run_operation(const std::string& name, Problem& problem, int threads) {
  const Cpu cpu{threads};
  if (name == "solve") {
    solve<float>(problem.view(problem.images), problem.weight_view(), problem.result_view(), {}, {}, cpu);
  } else if (name == "solve_transpose") {
    Options transposed;
    transposed.transpose = true;
    solve<float>(problem.view(problem.images), problem.weight_view(), problem.result_view(), transposed, {}, cpu);
  } else if (name == "conv") {
    conv<float>(problem.view(problem.images), problem.weight_view(), problem.result_view(), {}, {}, cpu);
  } else if (name == "weight_grad") {
    weight_grad<float>(problem.view(problem.images), problem.view(problem.others), problem.weight_result_view(), {}, {},
                       cpu);
  } else {
    solve_backward<float>(problem.view(problem.images), problem.view(problem.others), problem.weight_view(),
                          problem.result_view(), problem.weight_result_view(), {}, {}, cpu);
  }
}

// ---- what is measured ---------------------------------------------------------------------------------------------

void measure_operation(benchmark::State& state, const std::string& name, Problem& problem, int threads) {
  for (auto _ : state) {
    run_operation(name, problem, threads);
    benchmark::ClobberMemory();
  }
}

void measure_plain_solve(benchmark::State& state, Problem& problem, int threads) {
  const auto& [b, c, h, w] = problem.image;
  const std::int64_t image[4] = {b, c, h, w};
  const auto plain_solve = machine_code().plain_solve;
  for (auto _ : state) {
    plain_solve(problem.images.data(), problem.weight.data(), problem.result.data(), image, problem.taps[3], threads);
    benchmark::ClobberMemory();
  }
  state.counters["error"] = solve_error(problem);
}

void measure_peak(benchmark::State& state) {
  constexpr std::int64_t rounds = 100'000;
  const MachineCode code = machine_code();
  for (auto _ : state) {
    benchmark::DoNotOptimize(code.burst(rounds));
  }
  const auto operations = static_cast<double>(state.iterations() * rounds * code.burst_operations);
  state.counters["rate"] = benchmark::Counter(operations, benchmark::Counter::kIsRate);
}

void measure_chain(benchmark::State& state) {
  const MachineCode code = machine_code();
  for (auto _ : state) {
    benchmark::DoNotOptimize(code.chain(1000));
  }
}

/// A number goes to another thread and back. How long that takes depends on where the cores lie: in a virtual machine
/// it may change from minute to minute.
void measure_hand_over(benchmark::State& state) {
  constexpr int stop = -1;
  alignas(64) std::atomic<int> asked{0};
  alignas(64) std::atomic<int> answered{0};
  std::thread other([&] {
    for (int last = 0; last != stop;) {
      const int now = asked.load(std::memory_order_acquire);
      if (now != last) {
        answered.store(last = now, std::memory_order_release);
      }
    }
  });
  for (auto _ : state) {
    for (int turn = 1; turn <= 1000; ++turn) {
      asked.store(turn, std::memory_order_release);
      while (answered.load(std::memory_order_acquire) != turn) {
      }
    }
  }
  asked = stop;
  other.join();
}

/// Each thread copies its part again and again, so small arrays stay in its caches and nobody waits for anybody.
void measure_copy(benchmark::State& state, std::size_t bytes) {
  const std::size_t part = std::max<std::size_t>(bytes / static_cast<std::size_t>(state.threads()), 1);
  const std::vector<char> from(part, 1);
  std::vector<char> to(part, 2);
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), part);
    benchmark::ClobberMemory();
  }
  const auto moved = static_cast<double>(state.iterations()) * 2 * static_cast<double>(part);
  state.counters["rate"] = benchmark::Counter(moved, benchmark::Counter::kIsRate);
}

// ---- the command line ---------------------------------------------------------------------------------------------

struct Arguments {
  std::map<std::string, std::vector<std::string>, std::less<>> values;

  Arguments(int count, char** texts) {
    for (int i = 1; i + 1 < count; i += 2) {
      values[texts[i]].push_back(texts[i + 1]);
    }
    if (count % 2 == 0) {
      throw std::invalid_argument(std::string("expected a value after ") + texts[count - 1]);
    }
  }
  double number(std::string_view name, double otherwise) const {
    const auto found = values.find(name);
    return found == values.end() ? otherwise : std::stod(found->second.back());
  }
  std::vector<std::string> all(std::string_view name) const {
    const auto found = values.find(name);
    return found == values.end() ? std::vector<std::string>{} : found->second;
  }
};

void register_all(const Arguments& arguments) {
  const double seconds = arguments.number("--seconds", 0.05);
  const int repetitions = static_cast<int>(arguments.number("--repetitions", 5));
  const auto add = [&](const std::string& name, auto&& body) {
    return benchmark::RegisterBenchmark(name.c_str(), body)
        ->UseRealTime()
        ->MinTime(seconds)
        ->Repetitions(repetitions)
        ->Unit(benchmark::kMicrosecond);
  };
  std::vector<int> threads;
  for (const std::string& text : arguments.all("--threads")) {
    threads.push_back(std::stoi(text));
  }
  std::map<std::string, std::pair<Shape, std::int64_t>> shapes;
  std::map<std::string, Lazy> problems;
  for (const std::string& text : arguments.all("--shape")) {
    const std::size_t equals = text.find('=');
    long long b, c, h, w, k;
    if (equals == std::string::npos ||
        std::sscanf(text.c_str() + equals + 1, "%lld,%lld,%lld,%lld,%lld", &b, &c, &h, &w, &k) != 5) {
      throw std::invalid_argument("expected NAME=BATCH,CHANNELS,HEIGHT,WIDTH,KERNEL, but got " + text);
    }
    const std::string name = text.substr(0, equals);
    shapes[name] = {{b, c, h, w}, k};
    problems[name] = std::make_shared<std::unique_ptr<Problem>>();
  }
  for (const std::string& run : arguments.all("--run")) {
    if (run == "chain") {
      add("chain:1", measure_chain);
      continue;
    }
    if (run == "hand_over") {
      add("hand_over:2", measure_hand_over);
      continue;
    }
    for (const int count : threads) {
      const std::string suffix = std::string(":").append(std::to_string(count));
      if (run == "peak") {
        add("peak" + suffix, measure_peak)->Threads(count);
      } else if (run == "copy") {
        for (const std::string& bytes : arguments.all("--copy")) {
          const std::size_t size = std::stoull(bytes);
          add("copy:" + bytes + suffix, [size](benchmark::State& state) { measure_copy(state, size); })->Threads(count);
        }
      } else {
        for (const auto& [name, shape] : shapes) {
          const auto problem = [lazy = problems[name], image = shape.first, kernel = shape.second]() -> Problem& {
            return made(lazy, image, kernel);
          };
          if (run == "plain_solve") {
            add(run + ":" + name + suffix,
                [=](benchmark::State& state) { measure_plain_solve(state, problem(), count); });
          } else if (run == "solve" || run == "solve_transpose" || run == "conv" || run == "weight_grad" ||
                     run == "solve_backward") {
            add(run + ":" + name + suffix,
                [=](benchmark::State& state) { measure_operation(state, run, problem(), count); });
          } else {
            throw std::invalid_argument("nothing of the name " + run + " to run");
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace invconv::bench

int main(int count, char** texts) try {
  benchmark::Initialize(&count, texts);
  // The threads that solves in a process with torch run on, too.
  const bool openmp = invconv::share_openmp();
  benchmark::AddCustomContext("threads_of", openmp ? "OpenMP" : "invconv");
  benchmark::AddCustomContext("instruction_set", invconv::instruction_set());
  benchmark::AddCustomContext("probe", invconv::bench::machine_code().level);
  invconv::bench::register_all(invconv::bench::Arguments(count, texts));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "invconv_bench: %s\n", error.what());
  return 1;
}
