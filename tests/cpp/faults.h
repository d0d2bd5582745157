// A planted fault must be reported, its healthy twin must not.
#pragma once
#include "device.h"

namespace testing {

// Everything the harness has to say about a launch.
template <class Launch>
std::string problems(const Launch& launch) {
  std::string text;
  try {
    launch();
  } catch (const std::exception& e) {
    text = e.what();
  }
  for (const auto& report : simt::take_reports()) text += "\n" + report;
  return text;
}

// `run(std::bool_constant<broken>)` launches one of the twins.
template <class Run>
void expect_caught(const Run& run, const std::string& words, const std::string& line_of) {
  const std::string healthy = problems([&] { run(std::false_type{}); });
  if (!healthy.empty()) throw Failure("false alarm: " + healthy);
  const std::string broken = problems([&] { run(std::true_type{}); });
  if (broken.find(words) == std::string::npos) throw Failure("not reported as '" + words + "': " + broken);
  if (broken.find(line_of) == std::string::npos)
    throw Failure("no source line of " + line_of + ": " + broken);
}

}  // namespace testing

#define EXPECT_CAUGHT(words, ...) testing::expect_caught(__VA_ARGS__, words, "test_faults")
