#pragma once

// What the plans of a filter and of a correlation share: sizes in bytes, shares and threads.

#include <algorithm>

#include "cpu/dispatch.hpp"

namespace invconv::detail::cpu {

using Index = std::int64_t;

/// Bytes rounded up, so that what follows is aligned to a cache line.
inline std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

template <class A>
std::size_t aligned_bytes(Index elements) {
  return aligned(static_cast<std::size_t>(elements) * sizeof(A));
}

/// With one weight for each image, each image is a batch of its own, and its groups are groups beside the others'.
inline Sizes images_as_groups(Sizes sizes) {
  if (sizes.weights != 1) {
    sizes.batch = 1;
    sizes.groups *= sizes.weights;
    sizes.weights = 1;
  }
  return sizes;
}

template <class Problem>
Problem images_as_groups(const Problem& problem) {
  Problem result = problem;
  result.sizes = images_as_groups(problem.sizes);
  result.groups.clear();
  result.groups.reserve(static_cast<std::size_t>(result.sizes.groups));
  for (Index image = 0; image < problem.sizes.weights; ++image) {
    for (const auto& group : problem.groups) {
      result.groups.push_back(group.from_image(image));
    }
  }
  return result;
}

/// A helper thread pays when it takes over more work than it costs to have it: little while it still spins for work
/// (threads.cpp), several times as much once it sleeps. The estimate is rough, in nanoseconds of one core: 50
/// operations and 2 elements moved in each.
inline int useful_threads(const Sizes& s, const Cpu& execution) {
  const double pixels = static_cast<double>(s.batch * s.height * s.width * s.groups * s.channels);
  const double work = pixels * static_cast<double>(2 * s.channels * s.kernel_height * s.kernel_width) / 50 + pixels / 2;
  constexpr double wake = 10000;
  return work / wake < execution.threads ? 1 + static_cast<int>(work / wake) : execution.threads;
}

/// The parts of workspace_size, each for sizes that are clipped and not empty.
template <class T>
std::size_t filter_workspace(Operation operation, const Sizes& sizes, const Cpu& execution);
template <class T>
std::size_t correlation_workspace(const Sizes& sizes, const Cpu& execution);

}  // namespace invconv::detail::cpu
