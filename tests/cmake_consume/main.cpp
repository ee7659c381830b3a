// Solves, filters the solution again, and compares.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <invconv/invconv.hpp>
#include <string_view>
#include <vector>

int main() {
  const invconv::Shape images{3, 2, 16, 16}, taps{2, 2, 3, 3};
  std::vector<double> y(3 * 2 * 16 * 16), weight(2 * 2 * 3 * 3), x(y.size()), again(y.size());
  for (std::size_t at = 0; at < y.size(); ++at) {
    y[at] = std::cos(static_cast<double>(at));
  }
  for (std::size_t at = 0; at < weight.size(); ++at) {
    weight[at] = 0.05 * std::sin(static_cast<double>(at));
  }
  invconv::Options options;
  options.corners = {invconv::Corner::br};
  const auto view = [](std::vector<double>& data, const invconv::Shape& shape) {
    return invconv::View<double>::contiguous(data.data(), shape);
  };
  invconv::solve(view(y, images), view(weight, taps), view(x, images), options, {}, invconv::Cpu{});
  invconv::conv(view(x, images), view(weight, taps), view(again, images), options, {}, invconv::Cpu{});

  double largest = 0;
  for (std::size_t at = 0; at < y.size(); ++at) {
    largest = std::max(largest, std::abs(again[at] - y[at]));
  }
  std::printf("invconv %s (%s): |conv(solve(y)) - y| <= %g\n", INVCONV_VERSION, invconv::instruction_set(), largest);
  // Two chains of 18 terms; the taps add up to less than 0.9 and |y| <= 1, so |x| <= 1 / (1 - 0.9) and
  // |M| |x| + |y| <= 1.9 * 10 + 1 = 20. The promise is 2 (18 + 2) eps 20 for each.
  const bool is_exact = largest <= 2 * 2 * 20 * 20 * 0x1p-53;
  return is_exact && std::string_view(INVCONV_VERSION) == PACKAGE_VERSION ? 0 : 1;
}
