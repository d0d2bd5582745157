// Warp collectives: every live lane of the mask must reach the same operation, at the same source line, with
// the same mask; the last to come computes the results of all.
#include "checker.h"

namespace simt {

bool try_release_warp(Block& b, Warp& w, unsigned lane) {
  Thread* threads = &b.threads[(&w - b.warps.data()) * 32];
  const Thread& t = threads[lane];
  const unsigned lanes = t.mask & w.live;
  if ((w.waiting & lanes) != lanes) return false;
  for (unsigned m = lanes; m; m &= m - 1) {
    const Thread& other = threads[__builtin_ctz(m)];
    if (other.op != t.op || other.mask != t.mask) return false;
    if (other.site.line != t.site.line || other.site.file != t.site.file)
      fail(std::string("divergent ") + t.op->name + ": lanes at " + at(other.site) + " and " + at(t.site));
  }
  t.op->complete(b, w, threads, lanes);
  w.waiting &= ~lanes;
  for (unsigned m = lanes; m; m &= m - 1) {
    Thread& other = threads[__builtin_ctz(m)];
    if (other.state == State::kWarpWait) set_ready(other);
  }
  return true;
}

void collective(const Collective& op, unsigned mask, void* arg, Site site) {
  Thread& t = *self();
  Block& b = *t.owner;
  Warp& w = b.warps[t.warp];
  t.op = &op;
  t.mask = mask;
  t.arg = arg;
  t.site = site;
  if (!(mask >> t.lane & 1))
    fail(std::string(op.name) + " at " + at(site) + ": the calling lane is not in its own mask");
  if (op.whole_warp && w.live != ~0u)
    fail(std::string(op.name) + " at " + at(site) + " needs all 32 lanes of the warp");
  ++worker->stats.collectives;
  w.waiting |= 1u << t.lane;
  if (!try_release_warp(b, w, t.lane))
    wait_as(State::kWarpWait);
  else if (options.order != Order::kForward)
    yield_fibre();
}

// ---- votes ------------------------------------------------------------------------------------------------

// The argument of a vote: the lane's value on the way in, its result on the way out.
static uint64_t& vote_value(Thread& t) { return *static_cast<uint64_t*>(t.arg); }

static unsigned lanes_set(Thread* threads, unsigned lanes) {
  unsigned set = 0;
  for (unsigned m = lanes; m; m &= m - 1)
    if (vote_value(threads[__builtin_ctz(m)])) set |= 1u << __builtin_ctz(m);
  return set;
}

static void give_all(Thread* threads, unsigned lanes, uint64_t result) {
  for (unsigned m = lanes; m; m &= m - 1) vote_value(threads[__builtin_ctz(m)]) = result;
}

static void complete_ballot(Block&, Warp&, Thread* threads, unsigned lanes) {
  give_all(threads, lanes, lanes_set(threads, lanes));
}
static void complete_any(Block&, Warp&, Thread* threads, unsigned lanes) {
  give_all(threads, lanes, lanes_set(threads, lanes) != 0);
}
static void complete_all(Block&, Warp&, Thread* threads, unsigned lanes) {
  give_all(threads, lanes, lanes_set(threads, lanes) == lanes);
}

static void complete_match(Block&, Warp&, Thread* threads, unsigned lanes) {
  uint64_t result[32] = {};
  for (unsigned m = lanes; m; m &= m - 1)
    for (unsigned k = lanes; k; k &= k - 1)
      if (vote_value(threads[__builtin_ctz(m)]) == vote_value(threads[__builtin_ctz(k)]))
        result[__builtin_ctz(m)] |= 1u << __builtin_ctz(k);
  for (unsigned m = lanes; m; m &= m - 1) vote_value(threads[__builtin_ctz(m)]) = result[__builtin_ctz(m)];
}

// Only __syncwarp orders memory; shuffles and votes do not (CUDA programming guide).
static void complete_syncwarp(Block&, Warp&, Thread* threads, unsigned lanes) {
  if (!checker::enabled()) return;
  std::vector<Snapshot> arrivals;
  for (unsigned m = lanes; m; m &= m - 1) arrivals.push_back(checker::arrive(threads[__builtin_ctz(m)]));
  const ClockPtr seen = checker::merge(arrivals);
  for (unsigned m = lanes; m; m &= m - 1) threads[__builtin_ctz(m)].seen = seen;
}

uint64_t vote(const Collective& op, unsigned mask, uint64_t value, Site site) {
  RuntimeScope scope;
  collective(op, mask, &value, site);
  return value;
}

// ---- shuffles ---------------------------------------------------------------------------------------------

static int source_lane(const ShuffleArg& arg, int lane) {
  const int segment = lane & ~(arg.width - 1);
  int source = lane;
  switch (arg.mode) {
    case ShuffleArg::kIndex:
      return segment | (arg.operand & (arg.width - 1));
    case ShuffleArg::kUp:
      source = lane - arg.operand;
      return source < segment ? lane : source;
    case ShuffleArg::kDown:
      source = lane + arg.operand;
      break;
    case ShuffleArg::kXor:
      source = lane ^ arg.operand;
      break;
  }
  return source >= segment + arg.width ? lane : source;
}

static void complete_shuffle(Block&, Warp&, Thread* threads, unsigned lanes) {
  constexpr uint64_t kGarbage = ~0ull;  // what a lane that takes no part delivers
  uint64_t result[32];
  for (unsigned m = lanes; m; m &= m - 1) {
    const int lane = __builtin_ctz(m);
    const int source = source_lane(*static_cast<ShuffleArg*>(threads[lane].arg), lane);
    result[lane] = lanes >> source & 1 ? static_cast<ShuffleArg*>(threads[source].arg)->value : kGarbage;
  }
  for (unsigned m = lanes; m; m &= m - 1)
    static_cast<ShuffleArg*>(threads[__builtin_ctz(m)].arg)->value = result[__builtin_ctz(m)];
}

uint64_t shuffle(unsigned mask, ShuffleArg arg, Site site) {
  RuntimeScope scope;
  collective(kShuffle, mask, &arg, site);
  return arg.value;
}

const Collective kSyncWarp{"__syncwarp", false, complete_syncwarp};
const Collective kShuffle{"__shfl_sync", false, complete_shuffle};
const Collective kBallot{"__ballot_sync", false, complete_ballot};
const Collective kAny{"__any_sync", false, complete_any};
const Collective kAll{"__all_sync", false, complete_all};
const Collective kMatch{"__match_any_sync", false, complete_match};

}  // namespace simt
