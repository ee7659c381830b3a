#pragma once

// A small pool of threads, and why not OpenMP: a program that uses none should not need its runtime, a second one in a
// process that has one keeps cores busy that the first one wants, and the thread sanitizer cannot see through libgomp.
//
// Where the process has a runtime already (torch brings one, whose idle threads go on spinning for milliseconds),
// threads of our own would compete with its: measured beside torch's convolutions, two threads were then slower than
// one. So share_openmp() borrows the runtime's threads, by the entry point that every OpenMP runtime on Linux has,
// without being linked to any.

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace invconv::detail {

/// A call of parallel_for: body(context, list, task, worker) with 0 <= worker < threads.
using TaskBody = void (*)(void* context, int list, std::int64_t task, int worker);

/// In which order the tasks of a list begin.
enum class Order {
  any,    // each worker begins with a share of them, the same one in every call
  given,  // one after the other: those under way are neighbours, and each may wait for earlier ones
};

struct TaskList {
  std::int64_t count;
  Order order;
};

inline constexpr std::size_t most_task_lists = 2;

/// Runs the tasks 0 .. count-1 of every list, each once, on the calling thread and at most threads - 1 others; returns
/// when all are done. A worker turns to the next list when all tasks of the one before are taken, done or not; it runs
/// one task at a time, so it can own scratch memory. With threads of our own a worker is the same thread in every call,
/// which has what it will need in the caches of its core, and the caller never waits for a helper that has not begun,
/// and runs alone while another thread is in here. The body must not throw.
void parallel_for(int threads, std::span<const TaskList> lists, TaskBody body, void* context);

/// body(list, task, worker).
template <class Body>
void parallel_for(int threads, std::span<const TaskList> lists, Body&& body) {
  parallel_for(
      threads, lists,
      [](void* context, int list, std::int64_t task, int worker) {
        (*static_cast<std::remove_reference_t<Body>*>(context))(list, task, worker);
      },
      &body);
}

/// One list: body(task, worker).
template <class Body>
void parallel_for(int threads, TaskList tasks, Body&& body) {
  parallel_for(threads, std::span<const TaskList>(&tasks, 1),
               [&](int, std::int64_t task, int worker) { body(task, worker); });
}

}  // namespace invconv::detail
