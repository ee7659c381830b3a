// A bad argument gets one clear line, and nothing is written.

#include <functional>
#include <initializer_list>

#include "support.hpp"

namespace invconv::test {
namespace {

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

Options with_groups(Index groups) {
  Options options;
  options.groups = groups;
  return options;
}

Options with_corners(std::initializer_list<Corner> corners, Index groups) {
  Options options = with_groups(groups);
  options.corners = corners;
  return options;
}

/// A call's shapes and options, and the message that it must give, without the function's name.
struct BadCall {
  Shape in, weight, out;
  Options options;
  const char* message;
};

const BadCall bad_calls[] = {
    {{2, 12, 8, 8},
     {12, 6, 3, 3},
     {2, 12, 8, 8},
     {},
     "expected weight of shape (C, C/groups, kh, kw) with C = 12, groups = 1, but got (12, 6, 3, 3)"},
    {{2, 12, 8, 8},
     {6, 12, 3, 3},
     {2, 12, 8, 8},
     {},
     "expected weight of shape (C, C/groups, kh, kw) with C = 12, groups = 1, but got (6, 12, 3, 3)"},
    {{2, 12, 8, 8},
     {12, 12, 3, 3},
     {2, 12, 8, 8},
     with_groups(2),
     "expected weight of shape (C, C/groups, kh, kw) with C = 12, groups = 2, but got (12, 12, 3, 3)"},
    {{2, 4, 8, 8},
     {4, 4, 0, 3},
     {2, 4, 8, 8},
     {},
     "expected weight of shape (C, C/groups, kh, kw) with C = 4, groups = 1, but got (4, 4, 0, 3)"},
    {{2, 4, 8, 8},
     {4, 4, 3, -1},
     {2, 4, 8, 8},
     {},
     "expected weight of shape (C, C/groups, kh, kw) with C = 4, groups = 1, but got (4, 4, 3, -1)"},
    {{2, 4, 8, 8}, {4, 4, 3, 3}, {2, 4, 8, 8}, with_groups(0), "expected groups to be at least 1, but got 0"},
    {{2, 4, 8, 8}, {4, 4, 3, 3}, {2, 4, 8, 8}, with_groups(-1), "expected groups to be at least 1, but got -1"},
    {{2, 4, 8, 8}, {4, 4, 3, 3}, {2, 4, 8, 8}, with_groups(3), "expected groups to divide C = 4, but got 3"},
    {{2, 4, 8, 8},
     {4, 1, 3, 3},
     {2, 4, 8, 8},
     with_corners({}, 4),
     "expected one corner, or one for each of the groups = 4, but got 0"},
    {{2, 4, 8, 8},
     {4, 1, 3, 3},
     {2, 4, 8, 8},
     with_corners({Corner::tl, Corner::br}, 4),
     "expected one corner, or one for each of the groups = 4, but got 2"},
};

TEST(Errors, SolveAndConv) {
  for (const BadCall& bad : bad_calls) {
    // Nothing may be read or written, so the arrays need not exist.
    const auto in = View<const float>{nullptr, bad.in, {}};
    const auto weight = View<const float>{nullptr, bad.weight, {}};
    const auto out = View<float>::contiguous(nullptr, bad.out);
    EXPECT_EQ(message_of([&] { solve<float>(in, weight, out, bad.options, {}, Cpu{}); }),
              std::string("[solve] ") + bad.message);
    EXPECT_EQ(message_of([&] { conv<float>(in, weight, out, bad.options, {}, Cpu{}); }),
              std::string("[conv] ") + bad.message);
    EXPECT_EQ(message_of([&] { workspace_size<float>(Operation::solve, bad.in, bad.weight, bad.options, Cpu{}); }),
              std::string("[workspace_size] ") + bad.message);
  }
}

TEST(Errors, WeightGrad) {
  for (const BadCall& bad : bad_calls) {
    const auto images = View<const double>{nullptr, bad.in, {}};
    const auto dw = View<double>::contiguous(nullptr, bad.weight);
    EXPECT_EQ(message_of([&] { weight_grad<double>(images, images, dw, bad.options, {}, Cpu{}); }),
              std::string("[weight_grad] ") + bad.message);
  }
  const View<const double> x{nullptr, {2, 4, 8, 8}, {}}, g{nullptr, {2, 4, 8, 7}, {}};
  const auto dw = View<double>::contiguous(nullptr, {4, 4, 3, 3});
  EXPECT_EQ(message_of([&] { weight_grad<double>(x, g, dw, {}, {}, Cpu{}); }),
            "[weight_grad] expected g of the shape of x, (2, 4, 8, 8), but got (2, 4, 8, 7)");
  Options transposed;
  transposed.transpose = true;
  EXPECT_EQ(message_of([&] { weight_grad<double>(x, x, dw, transposed, {}, Cpu{}); }),
            "[weight_grad] expected options without transpose; swap x and g instead");
  const View<double> shared{nullptr, {4, 4, 3, 3}, {36, 0, 3, 1}};
  EXPECT_EQ(message_of([&] { weight_grad<double>(x, x, shared, {}, {}, Cpu{}); }),
            "[weight_grad] expected dw whose elements have places of their own, but got one with a stride of 0");
}

TEST(Errors, SolveBackward) {
  const auto message = [](const Shape& g, const View<float>& dy, const View<float>& dw, const Options& options = {}) {
    const View<const float> x{nullptr, {2, 4, 8, 8}, {}}, weight{nullptr, {4, 4, 3, 3}, {}};
    return message_of([&] { solve_backward<float>(x, {nullptr, g, {}}, weight, dy, dw, options, {}, Cpu{}); });
  };
  const Shape image{2, 4, 8, 8}, taps{4, 4, 3, 3}, narrow{2, 4, 8, 7};
  const auto dy = View<float>::contiguous(nullptr, image), dw = View<float>::contiguous(nullptr, taps);
  const std::string head = "[solve_backward] expected ";
  EXPECT_EQ(message(narrow, dy, dw), head + "g of the shape of x, (2, 4, 8, 8), but got (2, 4, 8, 7)");
  EXPECT_EQ(message(image, View<float>::contiguous(nullptr, narrow), dw),
            head + "dy of the shape of x, (2, 4, 8, 8), but got (2, 4, 8, 7)");
  EXPECT_EQ(message(image, dy, View<float>::contiguous(nullptr, {4, 4, 3, 2})),
            head + "dw of the shape of weight, (4, 4, 3, 3), but got (4, 4, 3, 2)");
  EXPECT_EQ(message(image, {nullptr, image, {256, 0, 8, 1}}, dw),
            head + "dy whose elements have places of their own, but got one with a stride of 0");
  EXPECT_EQ(message(image, dy, {nullptr, taps, {36, 0, 3, 1}}),
            head + "dw whose elements have places of their own, but got one with a stride of 0");
  Options options;
  options.groups = 3;
  EXPECT_EQ(message(image, dy, dw, options), head + "groups to divide C = 4, but got 3");
}

TEST(Errors, ImagesThatDoNotFit) {
  const View<const float> weight{nullptr, {4, 4, 3, 3}, {}};
  const auto solve_with = [&](const Shape& y, const View<float>& x) {
    return message_of([&] { solve<float>(View<const float>{nullptr, y, {}}, weight, x, {}, {}, Cpu{}); });
  };
  EXPECT_EQ(solve_with({2, 4, 8, 8}, View<float>::contiguous(nullptr, {2, 4, 8, 9})),
            "[solve] expected x of the shape of y, (2, 4, 8, 8), but got (2, 4, 8, 9)");
  EXPECT_EQ(solve_with({-1, 4, 8, 8}, View<float>::contiguous(nullptr, {-1, 4, 8, 8})),
            "[solve] expected y of a shape without negative sizes, but got (-1, 4, 8, 8)");
  for (std::size_t axis = 0; axis < 4; ++axis) {
    auto x = View<float>::contiguous(nullptr, {2, 4, 8, 8});
    x.stride[axis] = 0;
    EXPECT_EQ(solve_with({2, 4, 8, 8}, x),
              "[solve] expected x whose elements have places of their own, but got one with a stride of 0");
  }
}

TEST(Errors, LogAbsDetAndGrowth) {
  const std::vector<float> taps(36);
  const auto weight = [&](const Shape& shape) { return View<const float>::contiguous(taps.data(), shape); };
  const auto both = [&](const Shape& shape, Index height, Index width, const Options& options,
                        const std::string& text) {
    EXPECT_EQ(message_of([&] { logabsdet<float>(weight(shape), height, width, options); }), "[logabsdet] " + text);
    EXPECT_EQ(message_of([&] { growth<float>(weight(shape), height, width, options); }), "[growth] " + text);
  };
  both({2, 2, 3, 3}, -1, 4, {}, "expected size = (H, W) without negative sizes, but got (-1, 4)");
  both({2, 2, 3, 3}, 4, -2, {}, "expected size = (H, W) without negative sizes, but got (4, -2)");
  both({2, 1, 3, 3}, 4, 4, {},
       "expected weight of shape (C, C/groups, kh, kw) with C = 2, groups = 1, but got (2, 1, 3, 3)");
  both({-2, -2, 3, 3}, 4, 4, {},
       "expected weight of shape (C, C/groups, kh, kw) with C = -2, groups = 1, but got (-2, -2, 3, 3)");
  both({2, 2, 3, 3}, 4, 4, with_groups(3), "expected groups to divide C = 2, but got 3");
  both({2, 2, 3, 3}, 4, 4, with_corners({Corner::tl, Corner::tl}, 1),
       "expected one corner, or one for each of the groups = 1, but got 2");
}

// Sizes whose product leaves 64 bits, or comes back to 0.
TEST(Errors, GrowthOnAnImageThatFitsInNoMemory) {
  const std::vector<float> taps(4);
  const auto weight = View<const float>::contiguous(taps.data(), {2, 2, 1, 1});
  constexpr Index huge = Index{1} << 40, most = std::numeric_limits<Index>::max();
  EXPECT_EQ(message_of([&] { growth<float>(weight, huge, huge, {}); }),
            "[growth] expected an image that fits in memory, but got one of 2 channels and size = (1099511627776, "
            "1099511627776)");
  EXPECT_EQ(message_of([&] { growth<float>(weight, 1, most, {}); }),
            "[growth] expected an image that fits in memory, but got one of 2 channels and size = (1, "
            "9223372036854775807)");
  EXPECT_EQ(growth<float>(weight, 0, most, {}), 0);
}

// numpy and torch give arrays without elements strides of zero.
TEST(Errors, NoneForAnEmptyOutputWithStridesOfZero) {
  const View<float> empty{nullptr, {0, 4, 8, 8}, {}};
  const Array<float> weight(Dense({4, 4, 1, 1}), contiguous);
  EXPECT_EQ(message_of([&] { solve<float>(empty, weight.view(), empty, {}, {}, Cpu{}); }), "no error");
}

TEST(Errors, ArraysWithoutMemory) {
  const Shape image{1, 2, 3, 4}, taps{2, 2, 1, 1};
  const Array<float> images(image), weight(taps), out(image), dw(taps);
  const auto none = View<float>::contiguous(nullptr, image), no_taps = View<float>::contiguous(nullptr, taps);
  const auto text = [](const std::string& function, const std::string& name, const std::string& shape) {
    return "[" + function + "] expected " + name + " of shape " + shape +
           " to point at its elements, but got a null pointer";
  };
  const std::string all = "(1, 2, 3, 4)", small = "(2, 2, 1, 1)";
  const Cpu cpu{1};
  EXPECT_EQ(message_of([&] { solve<float>(none, weight.view(), out.view(), {}, {}, cpu); }), text("solve", "y", all));
  EXPECT_EQ(message_of([&] { solve<float>(images.view(), no_taps, out.view(), {}, {}, cpu); }),
            text("solve", "weight", small));
  EXPECT_EQ(message_of([&] { conv<float>(images.view(), weight.view(), none, {}, {}, cpu); }), text("conv", "y", all));
  EXPECT_EQ(message_of([&] { weight_grad<float>(images.view(), none, dw.view(), {}, {}, cpu); }),
            text("weight_grad", "g", all));
  EXPECT_EQ(message_of([&] {
              solve_backward<float>(images.view(), images.view(), weight.view(), out.view(), no_taps, {}, {}, cpu);
            }),
            text("solve_backward", "dw", small));
  EXPECT_EQ(message_of([&] { growth<float>(no_taps, 3, 4, {}); }), text("growth", "weight", small));
  EXPECT_EQ(message_of([&] { logabsdet<float>(no_taps, 3, 4, {}); }), text("logabsdet", "weight", small));
}

TEST(Errors, CudaIsRefusedWithoutADevice) {
  if (cuda_devices() > 0) {
    GTEST_SKIP() << "there is a device";
  }
#ifdef INVCONV_HAS_CUDA
  const std::string text =
      message_of([] { workspace_size<float>(Operation::solve, {1, 1, 1, 1}, {1, 1, 1, 1}, {}, Cuda{}); });
  EXPECT_EQ(text.rfind("[cuda] the device: ", 0), 0u) << text;
#else
  const std::string text =
      "[cuda] this build of invconv has no CUDA kernels; use the CPU, or build it where nvcc is found";
#endif
  const Array<float> images({1, 1, 2, 2}), weight({1, 1, 1, 1}), out({1, 1, 2, 2});
  const std::vector<float> before = out.buffer();
  EXPECT_EQ(message_of([&] { solve<float>(images.view(), weight.view(), out.view(), {}, {}, Cuda{}); }), text);
  EXPECT_EQ(message_of([&] { conv<float>(images.view(), weight.view(), out.view(), {}, {}, Cuda{}); }), text);
  EXPECT_EQ(message_of([&] { weight_grad<float>(images.view(), images.view(), weight.view(), {}, {}, Cuda{}); }), text);
  EXPECT_EQ(message_of([&] { workspace_size<float>(Operation::conv, {1, 1, 2, 2}, {1, 1, 1, 1}, {}, Cuda{}); }), text);
  EXPECT_TRUE(same_bits(out.buffer(), before));
}

TEST(Errors, ADeviceThatFailsIsAnErrorOfItsOwn) {
  if (cuda_devices() > 0) {
    GTEST_SKIP() << "there is a device";
  }
  EXPECT_TRUE(cuda_info().devices.empty());
#ifdef INVCONV_HAS_CUDA
  EXPECT_THROW(synchronize(Cuda{}), DeviceError);
  const std::string text = message_of([] { synchronize(Cuda{}); });
  EXPECT_EQ(text.rfind("[cuda] the device: ", 0), 0u) << text;
  EXPECT_EQ(cuda_info().compiler.rfind("nvcc ", 0), 0u);
  EXPECT_FALSE(cuda_info().architectures.empty());
#else
  EXPECT_TRUE(cuda_info().compiler.empty());
#endif
}

TEST(Errors, NegativeNumbersOfThreads) {
  const std::string text = "expected threads of at least 1, or 0 for num_threads(), but got -1";
  const Array<float> images({1, 1, 2, 2}), weight({1, 1, 1, 1}), out({1, 1, 2, 2});
  const Cpu cpu{-1};
  EXPECT_EQ(message_of([&] { solve<float>(images.view(), weight.view(), out.view(), {}, {}, cpu); }),
            "[solve] " + text);
  EXPECT_EQ(message_of([&] { conv<float>(images.view(), weight.view(), out.view(), {}, {}, cpu); }), "[conv] " + text);
  EXPECT_EQ(message_of([&] { weight_grad<float>(images.view(), images.view(), weight.view(), {}, {}, cpu); }),
            "[weight_grad] " + text);
  EXPECT_EQ(message_of([&] { growth<float>(weight.view(), 2, 2, {}, cpu); }), "[growth] " + text);
  EXPECT_EQ(message_of([&] { workspace_size<float>(Operation::conv, {1, 1, 2, 2}, {1, 1, 1, 1}, {}, cpu); }),
            "[workspace_size] " + text);
}

TEST(Errors, AreInvalidArguments) { EXPECT_THROW(set_num_threads(0), std::invalid_argument); }

}  // namespace
}  // namespace invconv::test
