// __syncthreads and the sixteen named barriers.
#include "checker.h"

namespace simt {

bool try_release_barrier(Block& b, int id, int count) {
  Barrier& barrier = b.barriers[id];
  if (barrier.arrived != count) return false;
  const ClockPtr seen = checker::merge(barrier.arrivals);
  for (Thread* t : barrier.waiting) {
    if (seen) t->seen = seen;
    t->barrier_result = barrier.predicates;
    if (t->state == State::kBarrierWait) set_ready(*t);
  }
  barrier = Barrier();
  return true;
}

static void enter(Thread& t, int id, int count, int predicate, Site site) {
  Block& b = *t.owner;
  Barrier& barrier = b.barriers[id];
  ++worker->stats.barriers;
  if (count % 32)
    fail("barrier " + std::to_string(id) + ": count " + std::to_string(count) + " is no multiple of 32, " +
         at(site));
  if (id == 0) {  // one __syncthreads is one source line, reached by every thread
    if (barrier.arrived && (barrier.site.line != site.line || barrier.site.file != site.file))
      fail("divergent __syncthreads: some threads are at " + at(barrier.site) + ", this one at " + at(site));
    if (b.live != static_cast<int>(b.size))
      fail("__syncthreads at " + at(site) + " after " + std::to_string(static_cast<int>(b.size) - b.live) +
           " threads of the block have exited");
  }
  barrier.site = site;
  ++barrier.arrived;
  barrier.predicates += predicate != 0;
  if (count && barrier.arrived > count)
    fail("more threads than its count at named barrier " + std::to_string(id));
  if (checker::enabled()) barrier.arrivals.push_back(checker::arrive(t));
}

int barrier_sync(int id, int count, int predicate, Site site) {
  RuntimeScope scope;
  Thread& t = *self();
  Block& b = *t.owner;
  enter(t, id, count, predicate, site);
  t.barrier_id = id;
  t.site = site;
  b.barriers[id].waiting.push_back(&t);
  if (!try_release_barrier(b, id, count ? count : b.live))
    wait_as(State::kBarrierWait);
  else if (options.order != Order::kForward)
    yield_fibre();  // the last to arrive need not be the first to go on
  return t.barrier_result;
}

void barrier_arrive(int id, int count, Site site) {
  RuntimeScope scope;
  enter(*self(), id, count, 0, site);
  try_release_barrier(*self()->owner, id, count);
}

void memory_fence() {
  RuntimeScope scope;
  checker::fence(*self());
}

void proxy_fence() {
  RuntimeScope scope;
  checker::proxy_fence(*self());
}

}  // namespace simt
