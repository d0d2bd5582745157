// Places followed without divisions, in 32 and in 64 bits.
#include "cuda/octets.cuh"
#include "device.h"

using namespace rad;
using namespace rad::cuda;
using namespace testing;

namespace {

struct Shape {
  int64_t first, count, inner;
};

// Per thread a shape: outer, place and within of eight elements.
__global__ void follow(const Shape* shapes, int64_t* found) {
  const Shape s = shapes[threadIdx.x];
  AxisPlace at(s.first, s.count, s.inner);
  for (int e = 0; e < kOctet; ++e) {
    int64_t* to = found + (threadIdx.x * kOctet + e) * 3;
    to[0] = at.outer, to[1] = at.at, to[2] = at.within;
    at.next();
  }
}

TEST(axis_places_are_those_of_divisions) {
  constexpr int64_t kWord = int64_t{1} << 32;
  std::vector<Shape> shapes;
  for (const int64_t first :
       {int64_t{0}, int64_t{5}, int64_t{1000}, kWord - 8, kWord - 3, kWord, 7 * kWord + 1})
    for (const int64_t count : {int64_t{1}, int64_t{3}, int64_t{50257}, kWord + 2})
      for (const int64_t inner : {int64_t{1}, int64_t{2}, int64_t{49}, kWord + 1})
        shapes.push_back({first, count, inner});
  Device<Shape> device(shapes);
  Device<int64_t> found(shapes.size() * kOctet * 3);
  launch(follow, {dim3(1), dim3(static_cast<unsigned>(shapes.size()))}, device.data(), found.data());
  const auto got = found.get();
  for (size_t s = 0; s < shapes.size(); ++s)
    for (int e = 0; e < kOctet; ++e) {
      const auto [first, count, inner] = shapes[s];
      const int64_t i = first + e;
      const int64_t want[] = {i / inner / count, i / inner % count, i % inner};
      for (int part = 0; part < 3; ++part)
        EXPECT(got[(s * kOctet + static_cast<size_t>(e)) * 3 + static_cast<size_t>(part)] == want[part], i,
               count, inner, part);
    }
}

}  // namespace
