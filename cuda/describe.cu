// A plan in words.

#include "plan.hpp"
#include "problem.cuh"

namespace invconv::detail::cuda {

namespace {

const char* name(Kernel kernel) {
  switch (kernel) {
    case Kernel::image:
      return "solve_image";
    case Kernel::image_sums:
      return "solve_image_sums, add_parts";
    case Kernel::wide:
      return "solve_wide";
    case Kernel::block:
      return "solve_block";
    case Kernel::strips:
      return "solve_strips";
    case Kernel::direct:
      return "conv_direct";
    case Kernel::tiles:
      return "conv_tiles";
    case Kernel::sums:
      break;
  }
  return "sum_parts, add_parts";
}

/// Of a plan, for as many groups as one launch can have.
int launches(const Plan& plan) {
  switch (plan.kernel) {
    case Kernel::image:
    case Kernel::tiles:
      return 1;
    case Kernel::wide:
    case Kernel::block:
    case Kernel::direct:
    case Kernel::strips:  // a weight is packed, the workspace cleared
      return 1 + (plan.weight_bytes > 0 ? 1 : 0) + (plan.cleared_bytes > 0 ? 1 : 0);
    case Kernel::image_sums:
    case Kernel::sums:
      break;
  }
  return 2;
}

}  // namespace

template <class T>
PlanInfo describe(Operation operation, const Sizes& sizes, const Cuda& execution, std::size_t shared_bytes) {
  const Device device{shared_bytes > 0 ? shared_bytes : most_shared_bytes(execution.device)};
  const Plan chosen = plan(device, operation, clipped(sizes), true, sizeof(Arithmetic<T>));
  constexpr int most = Groups<FilterGroup<T>>::most;
  return {name(chosen.kernel), chosen.threads, launches(chosen) * ceil_div(chosen.groups, most), chosen.shared_bytes,
          workspace_bytes(device, operation, clipped(sizes), sizeof(Arithmetic<T>))};
}

#define INVCONV_INSTANTIATE(T) template PlanInfo describe<T>(Operation, const Sizes&, const Cuda&, std::size_t);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cuda
