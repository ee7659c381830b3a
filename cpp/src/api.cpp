// The public functions: each one checks, turns the request into a top-left problem, and hands it to a backend.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "geometry.hpp"

namespace invconv {

namespace {

using namespace detail;

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

/// The caller's scratch, or the calling thread's own, which is kept for its next call if it is small. A device's memory
/// is the caller's alone.
class Scratch {
 public:
  Scratch(const char* function, const Workspace& given, std::size_t needed, const Execution& execution) {
    if (given.data != nullptr || std::holds_alternative<Cuda>(execution)) {
      check_workspace(function, given, needed);
      data_ = given.data;
    } else if (needed > kept_bytes) {
      once_.reset(::operator new(needed, std::align_val_t{64}));
      data_ = once_.get();
    } else {
      thread_local std::unique_ptr<void, Free> kept;
      thread_local std::size_t size = 0;
      if (size < needed) {
        kept.reset();
        size = 0;
        kept.reset(::operator new(needed, std::align_val_t{64}));
        size = needed;
      }
      data_ = kept.get();
    }
  }

  void* data() const { return data_; }

 private:
  static constexpr std::size_t kept_bytes = 8 << 20;
  std::unique_ptr<void, Free> once_;
  void* data_ = nullptr;
};

/// With the number of threads made definite: it is read once, since another thread may be setting it.
Execution settled(const char* function, const Execution& execution) {
  const auto* on_cpu = std::get_if<Cpu>(&execution);
  if (on_cpu == nullptr) {
    return execution;
  }
  check_threads(function, on_cpu->threads);
  return on_cpu->threads > 0 ? *on_cpu : Cpu{num_threads()};
}

template <class T>
std::size_t needed_workspace(Operation operation, const Sizes& sizes, const Execution& execution) {
  if (const auto* on_cuda = std::get_if<Cuda>(&execution)) {
    return cuda::workspace_size<T>(operation, sizes, *on_cuda);
  }
  if (operation == Operation::solve_backward) {  // one after the other
    return std::max(needed_workspace<T>(Operation::solve, sizes, execution),
                    needed_workspace<T>(Operation::weight_grad, sizes, execution));
  }
  return cpu::workspace_size<T>(operation, sizes, std::get<Cpu>(execution));
}

template <class Problem>
void run(const Problem& problem, void* workspace, const Execution& execution) {
  if (problem.sizes.weights == 0) {  // one for each of no images
    return;
  }
  if (const auto* on_cuda = std::get_if<Cuda>(&execution)) {
    cuda::run(problem, workspace, *on_cuda);
  } else {
    cpu::run(problem, workspace, std::get<Cpu>(execution));
  }
}

template <class T, std::size_t Axes>
Filter<T> filter_problem(Operation operation, const Sizes& sizes, View<const T> in, View<const T, Axes> weight,
                         View<T> out, const Options& options, bool transpose) {
  Filter<T> problem{operation, sizes, options.unit_diagonal, {}};
  problem.groups.reserve(static_cast<std::size_t>(sizes.groups));
  for (std::int64_t group = 0; group < sizes.groups; ++group) {
    const Corner corner = corner_of(options, group);
    problem.groups.push_back({group_images(in, group, sizes.channels, corner, transpose),
                              group_images(out, group, sizes.channels, corner, transpose),
                              group_taps(weight, group, sizes.channels, corner, transpose)});
  }
  return problem;
}

template <class T, std::size_t Axes>
Correlation<T> correlation_problem(const Sizes& sizes, View<const T> x, View<const T> g, View<T, Axes> dw,
                                   const Options& options, bool transpose, bool negative) {
  Correlation<T> problem{sizes, options.unit_diagonal, negative, {}};
  problem.groups.reserve(static_cast<std::size_t>(sizes.groups));
  for (std::int64_t group = 0; group < sizes.groups; ++group) {
    const Corner corner = corner_of(options, group);
    problem.groups.push_back({group_images(x, group, sizes.channels, corner, transpose),
                              group_images(g, group, sizes.channels, corner, transpose),
                              group_taps(dw, group, sizes.channels, corner, transpose)});
  }
  return problem;
}

template <class T, std::size_t Axes>
void filter(const char* function, Operation operation, const char* in_name, View<const T> in,
            View<const T, Axes> weight, const char* out_name, View<T> out, const Options& options,
            const Workspace& workspace, const Execution& requested) {
  const Sizes sizes = check_images(function, in_name, in.shape, weight.shape, options);
  check_same_shape(function, out_name, out.shape, in_name, in.shape);
  check_output(function, out_name, out.shape, out.stride);
  check_data(function, in_name, in.data, in.shape);
  check_data(function, "weight", weight.data, weight.shape);
  check_data(function, out_name, out.data, out.shape);
  const Execution execution = settled(function, requested);
  const Scratch scratch(function, workspace, needed_workspace<T>(operation, sizes, execution), execution);
  run(filter_problem(operation, sizes, in, weight, out, options, options.transpose), scratch.data(), execution);
}

template <class T, std::size_t Axes>
void correlate(View<const T> x, View<const T> g, View<T, Axes> dw, const Options& options, const Workspace& workspace,
               const Execution& requested) {
  const char* const function = "weight_grad";
  const Sizes sizes = check_images(function, "x", x.shape, dw.shape, options);
  check_same_shape(function, "g", g.shape, "x", x.shape);
  check_output(function, "dw", dw.shape, dw.stride);
  if (options.transpose) {
    throw Error("[weight_grad] expected options without transpose; swap x and g instead");
  }
  check_data(function, "x", x.data, x.shape);
  check_data(function, "g", g.data, g.shape);
  check_data(function, "dw", dw.data, dw.shape);
  const Execution execution = settled(function, requested);
  const Scratch scratch(function, workspace, needed_workspace<T>(Operation::weight_grad, sizes, execution), execution);
  run(correlation_problem(sizes, x, g, dw, options, false, false), scratch.data(), execution);
}

template <class T, std::size_t Axes>
void differentiate_solve(View<const T> x, View<const T> g, View<const T, Axes> weight, View<T> dy, View<T, Axes> dw,
                         const Options& options, const Workspace& workspace, const Execution& requested) {
  const char* const function = "solve_backward";
  const Sizes sizes = check_images(function, "x", x.shape, weight.shape, options);
  check_same_shape(function, "g", g.shape, "x", x.shape);
  check_same_shape(function, "dy", dy.shape, "x", x.shape);
  check_same_shape(function, "dw", dw.shape, "weight", weight.shape);
  check_output(function, "dy", dy.shape, dy.stride);
  check_output(function, "dw", dw.shape, dw.stride);
  check_data(function, "x", x.data, x.shape);
  check_data(function, "g", g.data, g.shape);
  check_data(function, "weight", weight.data, weight.shape);
  check_data(function, "dy", dy.data, dy.shape);
  check_data(function, "dw", dw.data, dw.shape);
  const Execution execution = settled(function, requested);
  const Scratch scratch(function, workspace, needed_workspace<T>(Operation::solve_backward, sizes, execution),
                        execution);
  const bool transpose = !options.transpose;
  const Filter<T> adjoint = filter_problem(Operation::solve, sizes, g, weight, dy, options, transpose);
  // M^T is linear in the weight too: <g, M^T x> = <M g, x> swaps the two.
  const View<const T> solved = dy;
  const auto* on_cuda = std::get_if<Cuda>(&execution);
  if (on_cuda != nullptr && cuda::has_both_gradients<T>(sizes, *on_cuda)) {
    cuda::run(adjoint, correlation_problem(sizes, solved, x, dw, options, transpose, true), scratch.data(), *on_cuda);
    return;
  }
  run(adjoint, scratch.data(), execution);
  run(correlation_problem(sizes, options.transpose ? solved : x, options.transpose ? x : solved, dw, options, false,
                          true),
      scratch.data(), execution);
}

double to_double(float value) { return value; }
double to_double(double value) { return value; }
double to_double(float16 value) { return to_float(value); }
double to_double(bfloat16 value) { return to_float(value); }

}  // namespace

template <class T>
std::size_t workspace_size(Operation operation, const Shape& image, const Shape& weight, const Options& options,
                           const Execution& execution) {
  return needed_workspace<T>(operation, check_images("workspace_size", "image", image, weight, options),
                             settled("workspace_size", execution));
}

template <class T, std::same_as<WeightsShape> Weights>
std::size_t workspace_size(Operation operation, const Shape& image, const Weights& weights, const Options& options,
                           const Execution& execution) {
  return needed_workspace<T>(operation, check_images("workspace_size", "image", image, weights, options),
                             settled("workspace_size", execution));
}

template <class T>
PlanInfo describe_plan(Operation operation, const Shape& image, const Shape& weight, const Options& options,
                       const Execution& requested, std::size_t shared_bytes) {
  const char* const function = "describe_plan";
  const Sizes sizes = check_images(function, "image", image, weight, options);
  const Execution execution = settled(function, requested);
  if (is_empty(sizes)) {
    return {};
  }
  const auto* on_cuda = std::get_if<Cuda>(&execution);
  const auto describe = [&](Operation described) {
    return on_cuda != nullptr ? cuda::describe<T>(described, sizes, *on_cuda, shared_bytes)
                              : cpu::describe<T>(described, sizes, std::get<Cpu>(execution));
  };
  if (operation != Operation::solve_backward ||
      (on_cuda != nullptr && cuda::has_both_gradients<T>(sizes, *on_cuda, shared_bytes))) {
    return describe(operation);
  }
  PlanInfo both = describe(Operation::solve);
  const PlanInfo sums = describe(Operation::weight_grad);
  both.kernel += ", " + sums.kernel;
  both.threads = std::max(both.threads, sums.threads);
  both.launches += sums.launches;
  both.shared_bytes = std::max(both.shared_bytes, sums.shared_bytes);
  both.workspace_bytes = std::max(both.workspace_bytes, sums.workspace_bytes);
  return both;
}

template <class T>
void solve(In<T> y, In<T> weight, View<T> x, const Options& options, Workspace workspace, const Execution& execution) {
  filter("solve", Operation::solve, "y", y, weight, "x", x, options, workspace, execution);
}

template <class T>
void solve(In<T> y, In<T, 5> weights, View<T> x, const Options& options, Workspace workspace,
           const Execution& execution) {
  filter("solve", Operation::solve, "y", y, weights, "x", x, options, workspace, execution);
}

template <class T>
void conv(In<T> x, In<T> weight, View<T> y, const Options& options, Workspace workspace, const Execution& execution) {
  filter("conv", Operation::conv, "x", x, weight, "y", y, options, workspace, execution);
}

template <class T>
void conv(In<T> x, In<T, 5> weights, View<T> y, const Options& options, Workspace workspace,
          const Execution& execution) {
  filter("conv", Operation::conv, "x", x, weights, "y", y, options, workspace, execution);
}

template <class T>
void weight_grad(In<T> x, In<T> g, View<T> dw, const Options& options, Workspace workspace,
                 const Execution& execution) {
  correlate(x, g, dw, options, workspace, execution);
}

template <class T>
void weight_grad(In<T> x, In<T> g, View<T, 5> dw, const Options& options, Workspace workspace,
                 const Execution& execution) {
  correlate(x, g, dw, options, workspace, execution);
}

template <class T>
void solve_backward(In<T> x, In<T> g, In<T> weight, View<T> dy, View<T> dw, const Options& options, Workspace workspace,
                    const Execution& execution) {
  differentiate_solve(x, g, weight, dy, dw, options, workspace, execution);
}

template <class T>
void solve_backward(In<T> x, In<T> g, In<T, 5> weights, View<T> dy, View<T, 5> dw, const Options& options,
                    Workspace workspace, const Execution& execution) {
  differentiate_solve(x, g, weights, dy, dw, options, workspace, execution);
}

template <class T>
double logabsdet(View<const T> weight, std::int64_t height, std::int64_t width, const Options& options) {
  check_size("logabsdet", height, width);
  const Sizes sizes = check_weight("logabsdet", weight.shape, options);
  check_data("logabsdet", "weight", weight.data, weight.shape);
  if (options.unit_diagonal || height == 0 || width == 0) {
    return 0;
  }
  double sum = 0;
  for (std::int64_t group = 0; group < sizes.groups; ++group) {
    const auto taps = group_taps(weight, group, sizes.channels, corner_of(options, group), false);
    for (std::int64_t c = 0; c < sizes.channels; ++c) {
      sum += std::log(std::abs(to_double(taps.data[c * (taps.out + taps.in)])));
    }
  }
  return static_cast<double>(height) * static_cast<double>(width) * sum;
}

template <class T>
double growth(View<const T> weight, std::int64_t height, std::int64_t width, const Options& options,
              const Cpu& execution) {
  const char* const function = "growth";
  check_size(function, height, width);
  check_threads(function, execution.threads);
  const Sizes sizes = check_weight(function, weight.shape, options);
  check_data(function, "weight", weight.data, weight.shape);
  const std::int64_t channels = weight.shape[0];
  if (channels == 0 || height == 0 || width == 0) {
    return 0;
  }
  check_fits(function, channels, height, width);
  const std::int64_t pixels = height * width;
  std::vector<double> taps(static_cast<std::size_t>(channels * weight.shape[1] * weight.shape[2] * weight.shape[3]));
  const auto dense = View<double>::contiguous(taps.data(), weight.shape);
  for (std::int64_t o = 0, at = 0; o < channels; ++o) {
    for (std::int64_t c = 0; c < weight.shape[1]; ++c) {
      for (std::int64_t u = 0; u < weight.shape[2]; ++u) {
        for (std::int64_t v = 0; v < weight.shape[3]; ++v, ++at) {
          taps[static_cast<std::size_t>(at)] = to_double(
              weight.data[o * weight.stride[0] + c * weight.stride[1] + u * weight.stride[2] + v * weight.stride[3]]);
        }
      }
    }
  }

  // Groups do not mix, so one image carries an impulse for each of them, and M^-1 commutes with shifts away from the
  // padded sides: an impulse in the corner pixel shows every entry that a row of M^-1 can hold, and the row of the
  // farthest pixel holds them all. A few channels at a time, so that an image of any size fits in memory.
  constexpr std::int64_t most_elements = 1 << 25;
  const std::int64_t images = std::min(sizes.channels, std::max<std::int64_t>(1, most_elements / (channels * pixels)));
  std::vector<double> response(static_cast<std::size_t>(images * channels * pixels));
  std::vector<double> row_sum(static_cast<std::size_t>(channels));
  for (std::int64_t first = 0; first < sizes.channels; first += images) {
    const std::int64_t batch = std::min(images, sizes.channels - first);
    const auto view = View<double>::contiguous(response.data(), {batch, channels, height, width});
    std::fill(response.begin(), response.end(), 0.0);
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t group = 0; group < sizes.groups; ++group) {
        const auto corner = group_images(view, group, sizes.channels, corner_of(options, group), options.transpose);
        corner.data[b * corner.batch + (first + b) * corner.channel] = 1;
      }
    }
    solve<double>(view, dense, view, options, {}, execution);
    for (std::int64_t b = 0, at = 0; b < batch; ++b) {
      for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t p = 0; p < pixels; ++p, ++at) {
          row_sum[static_cast<std::size_t>(c)] += std::abs(response[static_cast<std::size_t>(at)]);
        }
      }
    }
  }
  double norm = 0;
  for (const double sum : row_sum) {
    // After an overflow the recurrence may go on with infinity - infinity.
    norm = std::isnan(sum) ? std::numeric_limits<double>::infinity() : std::max(norm, sum);
  }
  return norm;
}

bool has_cuda() { return cuda::has_kernels(); }

int cuda_devices() { return cuda::devices(); }

CudaInfo cuda_info() { return cuda::info(); }

void synchronize(const Cuda& execution) { cuda::synchronize(execution); }

const char* instruction_set() { return cpu::kernels<float>().name; }

#define INVCONV_INSTANTIATE(T)                                                                                         \
  template std::size_t workspace_size<T>(Operation, const Shape&, const Shape&, const Options&, const Execution&);     \
  template std::size_t workspace_size<T, WeightsShape>(Operation, const Shape&, const WeightsShape&, const Options&,   \
                                                       const Execution&);                                              \
  template PlanInfo describe_plan<T>(Operation, const Shape&, const Shape&, const Options&, const Execution&,          \
                                     std::size_t);                                                                     \
  template void solve<T>(In<T>, In<T>, View<T>, const Options&, Workspace, const Execution&);                          \
  template void solve<T>(In<T>, In<T, 5>, View<T>, const Options&, Workspace, const Execution&);                       \
  template void conv<T>(In<T>, In<T>, View<T>, const Options&, Workspace, const Execution&);                           \
  template void conv<T>(In<T>, In<T, 5>, View<T>, const Options&, Workspace, const Execution&);                        \
  template void weight_grad<T>(In<T>, In<T>, View<T>, const Options&, Workspace, const Execution&);                    \
  template void weight_grad<T>(In<T>, In<T>, View<T, 5>, const Options&, Workspace, const Execution&);                 \
  template void solve_backward<T>(In<T>, In<T>, In<T>, View<T>, View<T>, const Options&, Workspace, const Execution&); \
  template void solve_backward<T>(In<T>, In<T>, In<T, 5>, View<T>, View<T, 5>, const Options&, Workspace,              \
                                  const Execution&);                                                                   \
  template double logabsdet<T>(View<const T>, std::int64_t, std::int64_t, const Options&);                             \
  template double growth<T>(View<const T>, std::int64_t, std::int64_t, const Options&, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv
