#pragma once

// A small pool of threads, and why not OpenMP: a program that uses none should not need its runtime, a second one in a
// process that has one keeps cores busy that the first one wants, and the thread sanitizer cannot see through libgomp.
//
// Where the process has a runtime already (torch brings one, whose idle threads go on spinning for milliseconds),
// threads of our own would compete with its: measured beside torch's convolutions, two threads were then slower than
// one. So share_openmp() borrows the runtime's threads, by the entry point that every OpenMP runtime on Linux has,
// without being linked to any.

#include <cstdint>

namespace invconv::detail {

/// A call of parallel_for: body(context, task, worker) with 0 <= worker < threads.
using TaskBody = void (*)(void* context, std::int64_t task, int worker);

/// Runs tasks 0 .. tasks-1, each once, on the calling thread and at most threads - 1 others; returns when all are done.
/// They end in any order but begin in this one, so that a task may wait for an earlier one. A worker runs one task at a
/// time, so it can own scratch memory. The caller never waits for a helper that has not begun, and runs alone while
/// another thread is in here. The body must not throw.
void parallel_for(int threads, std::int64_t tasks, TaskBody body, void* context);

template <class Body>
void parallel_for(int threads, std::int64_t tasks, Body&& body) {
  parallel_for(
      threads, tasks,
      [](void* context, std::int64_t task, int worker) { (*static_cast<Body*>(context))(task, worker); }, &body);
}

}  // namespace invconv::detail
