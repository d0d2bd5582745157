// Runs the registered tests: one line each, then "N passed, N failed".
//   --filter TEXT   only tests whose name contains TEXT
//   --order forward|reverse|random   --seed N   how fibres are scheduled
//   --large         bigger shapes
#include <chrono>
#include <cstdio>
#include <cstring>

#include "device.h"

namespace {

struct Arguments {
  int count;
  char** values;
  bool has(const char* name) const {
    for (int i = 1; i < count; ++i)
      if (!strcmp(values[i], name)) return true;
    return false;
  }
  const char* get(const char* name, const char* otherwise) const {
    for (int i = 1; i + 1 < count; ++i)
      if (!strcmp(values[i], name)) return values[i + 1];
    return otherwise;
  }
};

#ifdef __CUDACC__
void configure(const Arguments&) {}
std::vector<std::string> reports() {
  const cudaError_t status = cudaDeviceSynchronize();
  return status == cudaSuccess ? std::vector<std::string>{}
                               : std::vector<std::string>{cudaGetErrorString(status)};
}
#else
void configure(const Arguments& arguments) {
  const std::string order = arguments.get("--order", "forward");
  simt::options.order = order == "reverse"  ? simt::Order::kReverse
                        : order == "random" ? simt::Order::kRandom
                                            : simt::Order::kForward;
  simt::options.seed = std::stoull(arguments.get("--seed", "1"));
}
std::vector<std::string> reports() { return simt::take_reports(); }
#endif

// Empty when the test passed.
std::string run(const testing::Test& test) {
  std::string problem;
  try {
    test.body();
  } catch (const std::exception& e) {
    problem = e.what();
  }
  for (const auto& report : reports()) problem += (problem.empty() ? "" : "\n    ") + report;
  return problem;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int count, char** values) {
  const Arguments arguments{count, values};
  configure(arguments);
  testing::large = arguments.has("--large");
  const char* filter = arguments.get("--filter", "");
  int passed = 0, failed = 0;
  for (const testing::Test& test : testing::tests()) {
    if (!strstr(test.name, filter)) continue;
    const auto start = std::chrono::steady_clock::now();
    const std::string problem = run(test);
    ++(problem.empty() ? passed : failed);
    printf("%s  %-44s %7.3f s%s%s\n", problem.empty() ? "ok  " : "FAIL", test.name, seconds_since(start),
           problem.empty() ? "" : "\n    ", problem.c_str());
    fflush(stdout);
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || passed == 0;
}
