#pragma once

// Loops that check themselves, and processes to run them in.

#include <atomic>
#include <vector>

#include "support.hpp"
#include "threads.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace invconv::test {

/// Runs a loop and tells whether each task ran exactly once, each worker was below `threads`, and none ran two tasks
/// at a time.
inline bool runs_each_task_once(int threads, Index tasks, detail::Order order = detail::Order::any) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
  std::vector<std::atomic<bool>> is_busy(static_cast<std::size_t>(threads));
  std::atomic<bool> fine{true};
  detail::parallel_for(threads, {tasks, order}, [&](Index task, int worker) {
    if (task < 0 || task >= tasks || worker < 0 || worker >= threads ||
        is_busy[static_cast<std::size_t>(worker)].exchange(true)) {
      fine = false;
      return;
    }
    ++runs[static_cast<std::size_t>(task)];
    is_busy[static_cast<std::size_t>(worker)] = false;
  });
  for (Index task = 0; task < tasks; ++task) {
    fine = fine && runs[static_cast<std::size_t>(task)] == 1;
  }
  return fine;
}

#if defined(__unix__) || defined(__APPLE__)

/// Forks, runs `body` in the child, and tells whether it returned true there. What goes wrong after a fork is a child
/// that waits for ever, so an alarm ends it, minutes after any that works.
template <class Body>
bool in_a_child(Body&& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(120);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#endif

}  // namespace invconv::test
