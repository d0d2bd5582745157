// Error texts: where a thread stands, what a deadlock looks like, which line a code address belongs to.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "checker.h"

namespace simt {

std::string where(const ThreadContext& t) {
  char text[128];
  snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", t.block.x, t.block.y, t.block.z,
           t.thread.x, t.thread.y, t.thread.z);
  return text;
}

std::string at(Site site) {
  if (!site.file) return "?";
  const char* slash = strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

void fail(const std::string& message) {
  Thread* t = self();
  t->owner->error = message + " [" + where(*t) + "]";
  end_fibre();
}

static std::string what_it_waits_for(const Thread& t) {
  switch (t.state) {
    case State::kDone:
      return "exited";
    case State::kBarrierWait:
      return "at barrier " + std::to_string(t.barrier_id) + ", " + at(t.site);
    case State::kMbarrierWait:
      return "waiting on mbarrier, " + at(t.site);
    case State::kWarpWait: {
      char mask[32];
      snprintf(mask, sizeof mask, " mask %08x, ", t.mask);
      return std::string("at ") + t.op->name + mask + at(t.site);
    }
    default:
      return "runnable";
  }
}

std::string describe_deadlock(const Block& b) {
  std::map<std::string, std::pair<int, const Thread*>> groups;
  for (unsigned i = 0; i < b.size; ++i) {
    auto& [count, first] = groups[what_it_waits_for(b.threads[i])];
    if (!count++) first = &b.threads[i];
  }
  std::string text = "DEADLOCK (divergent barrier or collective):";
  for (auto& [state, group] : groups)
    text += "\n    " + std::to_string(group.first) + " threads " + state + ", first " + where(*group.second);
  return text;
}

static void on_signal(int signal_number, siginfo_t*, void*) {
  if (ThreadContext* t = current) {
    current = nullptr;
    std::string text =
        "SIGNAL " + std::to_string(signal_number) + " (bad or misaligned address) in " + where(*t) + "\n";
    for (auto& report : take_reports()) text += "  " + report + "\n";
    (void)!write(STDERR_FILENO, text.data(), text.size());
  }
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

void catch_signals() {
  static thread_local bool done = false;
  if (done) return;
  done = true;
  stack_t alternate{};  // a fibre's stack may be what is broken
  alternate.ss_size = 256 << 10;
  alternate.ss_sp = malloc(alternate.ss_size);
  sigaltstack(&alternate, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

static std::string source_line(unsigned long offset) {
  char exe[512];
  const ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (length < 0) return "?";
  exe[length] = 0;
  char command[1024], line[256] = "?";
  snprintf(
      command, sizeof command,
      "addr2line -ie '%s' 0x%lx 2>/dev/null | sed 's@.*/@@;s/ (disc.*//' | uniq | head -3 | paste -sd'<'",
      exe, offset - 1);
  if (FILE* pipe = popen(command, "r")) {
    if (fgets(line, sizeof line, pipe)) line[strcspn(line, "\n")] = 0;
    pclose(pipe);
  }
  return line;
}

std::string symbolise(std::string report) {
  for (size_t begin; (begin = report.find('@')) != std::string::npos;) {
    size_t end = begin + 1;
    while (end < report.size() && isdigit(static_cast<unsigned char>(report[end]))) ++end;
    report.replace(begin, end - begin, source_line(std::stoul(report.substr(begin + 1, end - begin - 1))));
  }
  return report;
}

std::vector<std::string> take_reports() {
  std::vector<std::string> reports = checker::take();
  for (auto& report : reports) report = symbolise(std::move(report));
  return reports;
}

bool checking() { return checker::enabled(); }

}  // namespace simt
