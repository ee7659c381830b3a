#pragma once

/// invconv: exact inverses of causal convolutions, and what backpropagates through them.
///
/// A causal convolution M pads an image with zeros on two sides only, so that M is a (block) triangular matrix:
///
///     y[b,o,p] = sum_{c,t} W[o,c,t] x[b,c,p-t],      x = M^-1 y by substitution, pixel after pixel.
///
/// The pixels of one anti-diagonal do not depend on each other, so an m x m image takes 2m - 1 steps (Nagar and Varma,
/// "Parallel Backpropagation for Inverse of a Convolution with Application to Normalizing Flows", arXiv 2410.14634).
///
/// Storage types T: float, double, float16, bfloat16. The arithmetic is float for the half types, including every
/// intermediate pixel of the recurrence, and T itself for float and double. With n = kh*kw*C/groups terms per output
/// and eps the unit roundoff of the arithmetic, `solve` and `conv` are componentwise backward stable:
///
///     |M x - y| <= c eps (|M| |x| + |y|),   c = 2 (n + 2),
///
/// plus one rounding to T where T is a half type (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.,
/// theorem 8.5). Every output is one fixed chain of operations: the result has the same bits for any number of threads,
/// any batch that the image sits in and any strides. Across instruction sets it agrees within the bound.
///
/// Every function is safe to call from several threads at once. Inputs are never written.

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "invconv/half.hpp"
#include "invconv/version.hpp"

namespace invconv {

/// What every function throws: for a bad argument, before anything is computed or written; and as DeviceError.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// Where a CUDA device or its driver fails: there is none, or no memory, or it refuses a launch. The message says what
/// failed, in the driver's words.
class DeviceError : public Error {
 public:
  using Error::Error;
};

using Shape = std::array<std::int64_t, 4>;

/// The shape of one weight for each image of a batch: (B, C, C/groups, kh, kw).
using WeightsShape = std::array<std::int64_t, 5>;

/// A strided view of an array, of 4 axes or, where there is one weight for each image, of 5. Strides are in elements
/// and may be negative, or zero in inputs.
template <class T, std::size_t Axes = 4>
struct View {
  T* data = nullptr;
  std::array<std::int64_t, Axes> shape{};
  std::array<std::int64_t, Axes> stride{};

  /// A view of a dense array in row-major order.
  static View contiguous(T* data, const std::array<std::int64_t, Axes>& shape) {
    View view{data, shape, {}};
    std::int64_t step = 1;
    for (std::size_t axis = Axes; axis-- > 0; step *= shape[axis]) {
      view.stride[axis] = step;
    }
    return view;
  }

  operator View<const T, Axes>() const
    requires(!std::is_const_v<T>)
  {
    return {data, shape, stride};
  }
};

/// An input's type: it does not take part in deducing T, so that a View<float> is accepted for a View<const float>.
template <class T, std::size_t Axes = 4>
using In = View<const std::type_identity_t<T>, Axes>;

/// The two sides of the image that are padded with zeros (kh-1 rows, kw-1 columns): t(op) or b(ottom), l(eft) or
/// r(ight). The tap that multiplies the pixel itself, the anchor, is the weight's corner on the opposite side: tl:
/// W[:,:,-1,-1], tr: W[:,:,-1,0], bl: W[:,:,0,-1], br: W[:,:,0,0].
enum class Corner : std::uint8_t { tl, tr, bl, br };

struct Options {
  /// One corner for all groups, or one for each.
  std::vector<Corner> corners = {Corner::tl};
  /// The anchor is lower triangular in the channels of its group: what is above its diagonal is never read. If true the
  /// diagonal counts as 1 and is not read either.
  bool unit_diagonal = true;
  /// Channels are split into this many groups that do not mix. At least 1, and divides C.
  std::int64_t groups = 1;
  /// Use M^T in place of M.
  bool transpose = false;
};

/// Run on the CPU with at most this many threads; 0 means num_threads().
struct Cpu {
  int threads = 0;
};

/// Run on a CUDA device, ordered on `stream` (a cudaStream_t; null: the default one). Arrays and workspace are memory
/// of that device, and the workspace is the caller's: nothing is allocated, waited for or copied to the host, so that a
/// call can be captured in a graph. Throws Error in a build without kernels, and DeviceError without a driver and where
/// a launch fails.
struct Cuda {
  int device = 0;
  void* stream = nullptr;
};

using Execution = std::variant<Cpu, Cuda>;

/// Scratch memory that a call may use, aligned to 64 bytes. Empty: the CPU backend brings its own; on a device there
/// must be as much as workspace_size() says.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

enum class Operation : std::uint8_t { solve, conv, weight_grad, solve_backward };

/// Bytes of scratch that `operation` needs for images of this shape and a weight of this shape (C, C/groups, kh, kw).
/// It does not depend on strides or corners. It does on the threads of `execution`: fewer may need more.
template <class T>
std::size_t workspace_size(Operation operation, const Shape& image, const Shape& weight, const Options& options,
                           const Execution& execution);
/// The same with one weight for each image. (No braced list is a WeightsShape here: it could be a Shape as well.)
template <class T, std::same_as<WeightsShape> Weights>
std::size_t workspace_size(Operation operation, const Shape& image, const Weights& weights, const Options& options,
                           const Execution& execution);

// Each operation comes in two forms: with one weight for all images, and with one for each of them. The second has the
// same bits as a call for each image.

/// x = M^-1 y, or M^-T y. y and x: (B, C, H, W); weight: (C, C/groups, kh, kw), or (B, C, C/groups, kh, kw). x may be y
/// itself, in place; any other overlap of x with y gives wrong results. Cost: 2 B H W C (C/groups) kh kw operations.
template <class T>
void solve(In<T> y, In<T> weight, View<T> x, const Options& options, Workspace workspace, const Execution& execution);
template <class T>
void solve(In<T> y, In<T, 5> weights, View<T> x, const Options& options, Workspace workspace,
           const Execution& execution);

/// y = M x, or M^T x: the convolution that solve() inverts. Shapes, cost and overlap as in solve(). In place, one image
/// is not shared out among threads.
template <class T>
void conv(In<T> x, In<T> weight, View<T> y, const Options& options, Workspace workspace, const Execution& execution);
template <class T>
void conv(In<T> x, In<T, 5> weights, View<T> y, const Options& options, Workspace workspace,
          const Execution& execution);

/// The derivative of <g, M x> with respect to the weight:
///
///     dw[o,c,u,v] = sum_{b,p} g[b,o,p] x[b,c,p-t(u,v)]     for the entries that are read, and exactly 0 for the
///     others.
///
/// x and g: (B, C, H, W); dw: (C, C/groups, kh, kw), or (B, C, C/groups, kh, kw) for the sums over p alone. At most 256
/// products are added up one after the other in the arithmetic of T; such sums, or those of a vector's lanes folded
/// onto each other, are added up in double, in a fixed order. Where g is not finite, taps that reach beyond the image
/// there may come out as NaN. `options.transpose` must be false.
template <class T>
void weight_grad(In<T> x, In<T> g, View<T> dw, const Options& options, Workspace workspace, const Execution& execution);
template <class T>
void weight_grad(In<T> x, In<T> g, View<T, 5> dw, const Options& options, Workspace workspace,
                 const Execution& execution);

/// Both gradients of a solve, from its result x = M^-1 y and an incoming g = dL/dx:
///
///     dL/dy = M^-T g,      dL/dW[o,c,u,v] = -sum_{b,p} (dL/dy)[b,o,p] x[b,c,p-t(u,v)]
///
/// where the weight is read, and exactly 0 elsewhere; with options.transpose those of x = M^-T y, for which dL/dy and x
/// change places in the sum. One solve and one correlation. x, g and dy: (B, C, H, W); weight and dw: (C, C/groups, kh,
/// kw), or (B, C, C/groups, kh, kw) with the sums over p alone. dy has the same bits as solve(), and dw as
/// -weight_grad(), but on a device where one kernel makes both: there dw is the same sum in another order, with the
/// same bound. dy may be g itself, in place; any other overlap of an output with anything gives wrong results.
template <class T>
void solve_backward(In<T> x, In<T> g, In<T> weight, View<T> dy, View<T> dw, const Options& options, Workspace workspace,
                    const Execution& execution);
template <class T>
void solve_backward(In<T> x, In<T> g, In<T, 5> weights, View<T> dy, View<T, 5> dw, const Options& options,
                    Workspace workspace, const Execution& execution);

/// log|det M| on images of height x width pixels: height * width * sum log|diag(anchor)|; 0 for a unit diagonal.
template <class T>
double logabsdet(View<const T> weight, std::int64_t height, std::int64_t width, const Options& options);

/// The infinity norm of M^-1 on images of height x width pixels: how much a solve can magnify its input, and its
/// rounding errors. Computed in double from C impulse responses, on the CPU; infinity where they overflow.
template <class T>
double growth(View<const T> weight, std::int64_t height, std::int64_t width, const Options& options,
              const Cpu& execution = {});

/// The weight of M = (I + L)(I + V) from free numbers `taps`, both of the shape (C, C/groups, kh, kw): for every taps
/// but NaN the infinity norm of M^-1 is at most 1 / (1 - bound)^2 on images of any size, as Neumann's series shows. L
/// is the strictly lower triangle of the anchor's taps, each row scaled until its absolute values add up to `bound` at
/// most; V the other taps, those of a group scaled until their infinity norms, one for each tap, do. Infinite taps
/// count as the largest number whose sums stay finite. M has a unit diagonal, whatever options.unit_diagonal says; D M,
/// each output's taps times a number, has any other. On the CPU, on one thread. `weight` overlaps with nothing, or is
/// `taps`. Throws Error also for a bound that is not in (0, 1).
template <class T>
void bounded_weight(In<T> taps, double bound, View<T> weight, const Options& options);

/// The number of threads that Cpu{0} means: what set_num_threads() said, else the environment's INVCONV_NUM_THREADS,
/// else what a shared OpenMP runtime would use, else OMP_NUM_THREADS, else the processors that this process may run on.
int num_threads();
void set_num_threads(std::int64_t threads);

/// Use the threads of the OpenMP runtime that other code of this process has loaded, if there is one, in place of the
/// library's own: two sets of threads compete for the processors. Returns whether there is one. For programs that use
/// OpenMP themselves or through a library; nothing is linked or loaded.
/// In the child of a fork the answer is no: a runtime does not survive one.
bool share_openmp();

/// Whether this build has CUDA kernels. It does not look for a device or a driver.
bool has_cuda();

/// How many CUDA devices there are: none in a build without kernels, or without a driver.
int cuda_devices();

/// Waits until all that was put on a stream so far is done.
void synchronize(const Cuda& execution);

struct CudaDevice {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  std::size_t memory_bytes = 0;
  std::size_t shared_bytes = 0;  // of one thread block, at most
};

/// CUDA in this build and on this machine. Without kernels all of it is empty, without a driver the devices are.
struct CudaInfo {
  std::string compiler;         // "nvcc 13.0.88"
  std::string architectures;    // as CMake names them: "75-real 90"
  int runtime = 0, driver = 0;  // versions, 1000 major + 10 minor; of the driver the newest CUDA that it knows
  std::vector<CudaDevice> devices;
};
CudaInfo cuda_info();

/// How a call is carried out, for people.
struct PlanInfo {
  std::string kernel;            // on the CPU what lies in the lanes of a vector, part by part
  int threads = 0;               // on a device: of a thread block
  int launches = 0;              // on a device: of kernels, and of clearing memory
  std::size_t shared_bytes = 0;  // on a device: of a thread block
  std::size_t workspace_bytes = 0;
};

/// The plan of an operation. Where solve_backward is a solve and then a weight_grad, launches are those of both, and
/// the other numbers the larger ones. Nothing is computed. On the CPU for arrays without gaps, the output not the
/// input. On CUDA `shared_bytes`, if not 0, stands for what a thread block of the device may have, and no device is
/// looked at; all devices of one such size have the same plans.
template <class T>
PlanInfo describe_plan(Operation operation, const Shape& image, const Shape& weight, const Options& options,
                       const Execution& execution, std::size_t shared_bytes = 0);

/// The instruction set that the CPU kernels use here: "avx512", "avx2", "neon" or "baseline".
const char* instruction_set();

}  // namespace invconv
