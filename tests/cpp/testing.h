// A test is a function with a name; it fails by throwing. main.cpp runs all of them.
#pragma once
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace testing {

struct Test {
  const char* name;
  void (*body)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

// Bigger shapes, for the build that is quick enough.
inline bool large = false;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream text;
  const std::string path = file;
  text << path.substr(path.rfind('/') + 1) << ':' << line << ": ";
  (text << ... << parts);
  throw Failure(text.str());
}

// A small deterministic generator: the same inputs on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    return state_ ^= state_ << 17;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() >> 1) % n; }
  // A multiple of 1/8 in [-1, 1]: sums of up to 2^15 products of two are exact in fp32 in every order.
  float eighth() { return static_cast<float>(below(17) - 8) / 8.f; }

 private:
  uint64_t state_;
};

}  // namespace testing

#define TEST(name)                                                            \
  static void test_##name();                                                  \
  static const testing::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define EXPECT(condition, ...)                                                                     \
  do {                                                                                             \
    if (!(condition))                                                                              \
      testing::fail(__FILE__, __LINE__, "not true: " #condition __VA_OPT__(, ": ", ) __VA_ARGS__); \
  } while (0)

// Element-wise equality of two containers; names the first difference.
#define EXPECT_SAME(actual, expected, ...)                                                       \
  do {                                                                                           \
    const auto& actual_ = (actual);                                                              \
    const auto& expected_ = (expected);                                                          \
    if (actual_.size() != expected_.size())                                                      \
      testing::fail(__FILE__, __LINE__, #actual ": ", actual_.size(), " elements, expected ",    \
                    expected_.size());                                                           \
    for (size_t i_ = 0; i_ < actual_.size(); ++i_)                                               \
      if (!(actual_[i_] == expected_[i_]))                                                       \
        testing::fail(__FILE__, __LINE__, #actual "[", i_, "] is ", +actual_[i_], ", expected ", \
                      +expected_[i_] __VA_OPT__(, ": ", ) __VA_ARGS__);                          \
  } while (0)
