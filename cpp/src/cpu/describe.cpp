// A plan in words.

#include "cpu/plan.hpp"
#include "cpu/sizes.hpp"

namespace invconv::detail::cpu {

namespace {

const char* name(Layout layout) {
  switch (layout) {
    case Layout::images:
      return "images";
    case Layout::mixed:
      return "mixed";
    case Layout::rows:
      return "rows";
    case Layout::channels:
      return "channels";
    case Layout::columns:
      return "columns";
    case Layout::flat:
      break;
  }
  return "flat";
}

}  // namespace

template <class T>
PlanInfo describe(Operation operation, const Sizes& full, const Cpu& execution) {
  const Sizes s = clipped(full);
  PlanInfo info;
  info.threads = useful_threads(s, execution);
  info.workspace_bytes = workspace_size<T>(operation, full, execution);
  if (operation == Operation::weight_grad) {
    info.kernel = "sums";
    return info;
  }
  const FilterPlan plan = plan_filter(this_machine<T>(), operation, s, info.threads, /*flat=*/true);
  info.threads = plan.threads;
  for (const Part& part : plan.parts) {
    info.kernel += info.kernel.empty() ? "" : ", ";
    if (plan.parts.size() > 1) {
      info.kernel += std::to_string(part.batch) + " images: ";
    }
    info.kernel += std::string(name(part.layout)) + " in " + std::to_string(part.lanes) + " lanes";
  }
  return info;
}

#define INVCONV_INSTANTIATE(T) template PlanInfo describe<T>(Operation, const Sizes&, const Cpu&);
INVCONV_INSTANTIATE(float)
INVCONV_INSTANTIATE(double)
INVCONV_INSTANTIATE(float16)
INVCONV_INSTANTIATE(bfloat16)

}  // namespace invconv::detail::cpu
