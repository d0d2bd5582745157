// Both fibre switches, the assembly and the portable one.
#include "simt/context.h"

#include "testing.h"

namespace simt_portable {
void* make_context(char* stack_low, char* stack_top, void (*entry)());
void switch_context(void** save, void* load);
}  // namespace simt_portable

namespace {

struct Switch {
  void* (*make)(char*, char*, void (*)());
  void (*change)(void**, void*);
};
Switch use;
void* host;
void* fibre[2];
std::vector<int> trace;

void body() {
  const int id = static_cast<int>(trace.size()) % 2;  // fibres are first entered in turn
  double kept = id + 0.5;                             // must survive the switches
  for (int step = 0; step < 3; ++step) {
    trace.push_back(static_cast<int>(kept * 2) * 10 + step);
    use.change(&fibre[id], host);
  }
  for (;;) use.change(&fibre[id], host);
}

void interleave(Switch with) {
  use = with;
  trace.clear();
  std::vector<char> stacks[2]{std::vector<char>(64 << 10), std::vector<char>(64 << 10)};
  for (int i = 0; i < 2; ++i)
    fibre[i] = use.make(stacks[i].data(), stacks[i].data() + stacks[i].size(), body);
  for (int step = 0; step < 3; ++step)
    for (int i = 0; i < 2; ++i) use.change(&host, fibre[i]);
  EXPECT_SAME(trace, (std::vector<int>{10, 30, 11, 31, 12, 32}));
}

TEST(fibre_switch) { interleave({simt::make_context, simt::switch_context}); }
TEST(fibre_switch_portable) { interleave({simt_portable::make_context, simt_portable::switch_context}); }

}  // namespace
