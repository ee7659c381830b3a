#pragma once

// How a filter is laid out in the lanes of vectors and dealt out to threads. The choice is one of speed alone: each
// output is computed by the same chain of operations in every layout, so that no plan changes a bit of a result.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend.hpp"
#include "cpu/kernels.hpp"

namespace invconv::detail::cpu {

/// What lies in the lanes of a vector.
enum class Layout {
  images,    // many images: pixel after pixel, nothing but the packing costs more than the arithmetic
  mixed,     // solve, a few images: a few rows of each, each one column behind the one above it
  rows,      // solve, few images of few channels: a band of rows, each a column or two behind the one above it
  channels,  // solve, few images of many channels: the output channels of a pixel
  columns,   // conv: the columns of a row, without packing
  flat,      // conv of flat arrays: the pixels of an image, whatever row they are in, without copying
};

/// What a plan must know of an instruction set, for one type of arithmetic.
struct Machine {
  std::int64_t lanes[4];  // descending
  std::int64_t block, channel_vectors;
  std::int64_t rows;
  std::int64_t element;   // bytes
  bool has_flat = false;  // whether there is a kernel for the layout flat
};

/// Images [first, first + batch) in one layout. A task is a group of images and a group of channels, or, where these
/// are fewer than the threads, one of their bands.
struct Part {
  Layout layout;
  std::int64_t lanes;
  std::int64_t first = 0, batch;
  std::int64_t images;     // at once
  std::int64_t bands = 0;  // of rows
  bool shared = false;     // whether bands are tasks
  FilterShape shape;
  std::int64_t weight_elements = 0, scratch_bytes = 0;
  // Of what a band leaves to the next one. Layout rows: columns, and those before the first one.
  std::int64_t edge_pitch = 0, edge_first = 0;
  std::int64_t edge_elements = 0, ring_elements = 0;

  std::int64_t image_groups() const { return (batch + images - 1) / images; }
  std::int64_t tasks(std::int64_t groups) const { return image_groups() * groups * (shared ? bands : 1); }

  /// Whether tasks wait for each other.
  bool is_pipeline() const { return shared && shape.solve; }
};

struct FilterPlan {
  std::vector<Part> parts;
  int threads;
};

/// Whether, in all groups, the rows and columns of an image lie one after the other, in input and output in the same
/// order, and the output is not the input.
template <class T>
bool is_flat(const Filter<T>& problem);

/// Every layout that can hold all the images of arrays that are `flat` or not.
std::vector<Part> possible_parts(const Machine& machine, Operation operation, const Sizes& sizes, int threads,
                                 bool flat);

/// Of no more threads than there are tasks.
FilterPlan make_plan(std::vector<Part> parts, std::int64_t groups, int threads);

/// The plan of least estimated cost.
FilterPlan plan_filter(const Machine& machine, Operation operation, const Sizes& sizes, int threads, bool flat);

/// The plan in place of another one for a weight that is not finite, which must not meet the zeros around an image: the
/// layout images, with one row at a time, leaves out all taps that lie outside. It takes no more memory than a few
/// rows.
FilterPlan careful_plan(const Machine& machine, const Sizes& sizes, const FilterPlan& plan);

/// The machine that the process runs on, with the kernels of storage type T.
template <class T>
Machine this_machine();

template <class T>
std::size_t workspace_size(const FilterPlan& plan, const Sizes& sizes);

/// Carries out a plan made for clipped(problem.sizes), which are not empty.
template <class T>
void run(const Filter<T>& problem, const FilterPlan& plan, void* workspace);

}  // namespace invconv::detail::cpu
