#pragma once

// One weight for each image is a call for each image, to the bit, on every backend.

#include <algorithm>

#include "support.hpp"

namespace invconv::test {

/// Weights of the shape (B, C, ...) in an array of the shape (B * C, ...), for these images.
template <class T>
View<T, 5> stacked(const View<T>& all, const Shape& images) {
  return {all.data,
          {images[0], images[1], all.shape[1], all.shape[2], all.shape[3]},
          {images[1] * all.stride[0], all.stride[0], all.stride[1], all.stride[2], all.stride[3]}};
}

template <class T>
View<T> image_of(View<T> batch, Index image) {
  if (batch.data != nullptr) {  // as that of empty images is
    batch.data += image * batch.stride[0];
  }
  batch.shape[0] = 1;
  return batch;
}

template <class T>
View<T> weight_of(const View<T, 5>& weights, Index image) {
  const auto& [shape, stride] = std::pair(weights.shape, weights.stride);
  return {weights.data + image * stride[0],
          {shape[1], shape[2], shape[3], shape[4]},
          {stride[1], stride[2], stride[3], stride[4]}};
}

/// Holds each call with weights of its own for each image to a call for each image.
template <class T>
void check_weights(const Problem& problem, Random& random, const Execution& execution) {
  const Options& options = problem.options;
  Options upright = options;
  upright.transpose = false;
  const Index batch = problem.image[0], channels = problem.image[1];
  Shape all = problem.weight;
  all[0] = batch * channels;
  Dense values(all);
  for (Index image = 0; image < batch; ++image) {
    const Dense one = random_weight(random, problem.weight, options, 0.9);
    std::copy(one.data.begin(), one.data.end(), values.data.begin() + image * static_cast<Index>(one.data.size()));
  }
  if (batch > 1 && random.integer(0, 9) == 0) {  // it must spoil its own image alone
    values.data[random.integer(0, static_cast<Index>(values.data.size()) - 1)] =
        std::numeric_limits<double>::infinity();
  }
  const Array<T> weight(values, random.pick(layouts));
  const Array<T> x(random_images(random, problem.image), random.pick(layouts));
  const Array<T> g(random_images(random, problem.image), random.pick(layouts));
  const auto weights = stacked(weight.view(), problem.image);

  Array<T> is[] = {Array<T>(problem.image, random.pick(layouts)), Array<T>(problem.image, random.pick(layouts)),
                   Array<T>(problem.image, random.pick(layouts))};
  Array<T> expected[] = {Array<T>(problem.image), Array<T>(problem.image), Array<T>(problem.image)};
  Array<T> gradients[] = {Array<T>(all, random.pick(layouts)), Array<T>(all, random.pick(layouts))};
  Array<T> expected_gradients[] = {Array<T>(all), Array<T>(all)};
  const auto memory = [&](Operation operation, const auto& image, const auto& shape) {
    return CallerMemory(workspace_size<T>(operation, image, shape, options, execution));
  };
  const auto all_memory = [&](Operation operation) { return memory(operation, problem.image, weights.shape); };
  solve<T>(x.view(), weights, is[0].view(), options, all_memory(Operation::solve).workspace(), execution);
  conv<T>(x.view(), weights, is[1].view(), options, all_memory(Operation::conv).workspace(), execution);
  weight_grad<T>(x.view(), g.view(), stacked(gradients[0].view(), problem.image), upright,
                 all_memory(Operation::weight_grad).workspace(), execution);
  solve_backward<T>(x.view(), g.view(), weights, is[2].view(), stacked(gradients[1].view(), problem.image), options,
                    all_memory(Operation::solve_backward).workspace(), execution);
  for (Index image = 0; image < batch; ++image) {
    const auto one = [&](const Array<T>& array) { return image_of(array.view(), image); };
    const auto gradient = [&](const Array<T>& array) { return weight_of(stacked(array.view(), problem.image), image); };
    const View<T> its = weight_of(weights, image);
    const auto its_memory = [&](Operation operation) { return memory(operation, one(x).shape, its.shape); };
    solve<T>(one(x), its, one(expected[0]), options, its_memory(Operation::solve).workspace(), execution);
    conv<T>(one(x), its, one(expected[1]), options, its_memory(Operation::conv).workspace(), execution);
    weight_grad<T>(one(x), one(g), gradient(expected_gradients[0]), upright,
                   its_memory(Operation::weight_grad).workspace(), execution);
    solve_backward<T>(one(x), one(g), its, one(expected[2]), gradient(expected_gradients[1]), options,
                      its_memory(Operation::solve_backward).workspace(), execution);
  }
  for (std::size_t k = 0; k < std::size(is); ++k) {
    ASSERT_TRUE(same_bits(is[k].elements(), expected[k].elements())) << k;
    ASSERT_TRUE(is[k].gaps_are_intact()) << k;
  }
  for (std::size_t k = 0; k < std::size(gradients); ++k) {
    ASSERT_TRUE(same_bits(gradients[k].elements(), expected_gradients[k].elements())) << k;
    ASSERT_TRUE(gradients[k].gaps_are_intact()) << k;
  }
}

}  // namespace invconv::test
