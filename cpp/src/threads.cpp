#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "invconv/invconv.hpp"
#include "pause.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace invconv {

namespace detail {
namespace {

/// The tasks of one call, which any number of threads may take.
struct Call {
  TaskBody body;
  void* context;
  std::int64_t tasks;
  std::atomic<std::int64_t> next_task{0};
  std::atomic<int> next_worker{0};

  void work() {
    const int worker = next_worker.fetch_add(1, std::memory_order_relaxed);
    for (;;) {
      // Whoever takes a task sees what the others did before they took theirs: bands of rows that follow each other
      // take over the memory of those that are over.
      const std::int64_t task = next_task.fetch_add(1, std::memory_order_acq_rel);
      if (task >= tasks) {
        return;
      }
      body(context, task, worker);
    }
  }
};

int available_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return CPU_COUNT(&set);
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

/// Spins until done() or, if that takes longer, for about as long as it takes to wake a sleeping thread; returns
/// done().
template <class Done>
bool spin_until(Done&& done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
  do {
    for (int turn = 0; turn < 32; ++turn) {
      if (done()) {
        return true;
      }
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

/// Helpers that have just worked spin for a while before they sleep, and so does a caller that waits for them: many
/// calls take less time than it takes to wake a thread.
class Pool {
 public:
  /// Never destroyed: its threads sleep until the process ends.
  static Pool& instance() {
    Pool* pool = current();
    if (pool == nullptr) {
      auto* fresh = new Pool;
      if (current().compare_exchange_strong(pool, fresh)) {
        return *fresh;
      }
      delete fresh;
    }
    return *pool;
  }

  /// In the child of a fork, which has none of the threads and may have inherited a locked mutex: begin anew.
  static void forget() { current() = nullptr; }

  void run(int threads, Call& call) {
    const std::unique_lock alone(busy_, std::try_to_lock);
    if (!alone) {
      call.work();
      return;
    }
    grow(threads - 1);
    call_ = &call;
    spins_ = threads <= available_processors();
    {
      // Locked, so that no helper falls asleep between its last look and the notification.
      const std::lock_guard lock(mutex_);
      state_ = place * static_cast<std::uint32_t>(std::min(threads - 1, size_));
    }
    wake_.notify_all();
    call.work();
    state_ &= place - 1;
    if (spins_ && spin_until([this] { return state_ == 0; })) {
      return;
    }
    std::unique_lock lock(mutex_);
    state_ |= caller_sleeps;
    done_.wait(lock, [this] { return state_ == caller_sleeps; });
  }

 private:
  static std::atomic<Pool*>& current() {
    static std::atomic<Pool*> pool{nullptr};
    return pool;
  }

  void grow(int size) {
    try {
      for (; size_ < size; ++size_) {
        std::thread([this] { serve(); }).detach();
      }
    } catch (const std::system_error&) {
      // No more threads to be had: those that there are do the work.
    }
  }

  void serve() {
    const auto joins = [this] {
      for (std::uint32_t state = state_; state >= place;) {
        if (state_.compare_exchange_weak(state, state - place + working)) {
          return true;
        }
      }
      return false;
    };
    for (bool spins = false;;) {
      if (!spins || !spin_until(joins)) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, joins);
      }
      spins = spins_;
      call_->work();
      if (state_.fetch_sub(working) == caller_sleeps + working) {
        const std::lock_guard lock(mutex_);
        done_.notify_one();
      }
    }
  }

  // What state_ counts: helpers inside the present call, and those that may still join it; between them, a flag.
  static constexpr std::uint32_t working = 1, caller_sleeps = 1 << 15, place = 1 << 16;

  std::mutex busy_;  // held by the one caller that uses the pool
  int size_ = 0;     // threads started
  Call* call_ = nullptr;
  bool spins_ = false;  // whether there are processors enough for the threads of the present call
  std::atomic<std::uint32_t> state_{0};
  std::mutex mutex_;  // locked to sleep, and to be sure that nobody is just about to
  std::condition_variable wake_, done_;
};

/// The entry points of an OpenMP runtime that other code of this process has loaded.
struct OpenMp {
  using Parallel = void (*)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
  using MaxThreads = int (*)();
  std::atomic<Parallel> parallel{nullptr};
  std::atomic<MaxThreads> max_threads{nullptr};
};

OpenMp& openmp() {
  static OpenMp runtime;
  return runtime;
}

std::atomic<bool> is_forked{false};

/// Threads do not survive a fork, and neither the pool nor a runtime would know. Watched from the moment that the
/// library is loaded, since a runtime may have run before it is shared.
[[maybe_unused]] const bool watching_forks = [] {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] {
    is_forked = true;
    openmp().parallel = nullptr;
    Pool::forget();
  });
#endif
  return true;
}();

}  // namespace

void parallel_for(int threads, std::int64_t tasks, TaskBody body, void* context) {
  Call call{body, context, tasks};
  threads = static_cast<int>(std::min<std::int64_t>(threads, tasks));
  if (threads <= 1) {
    call.work();
    return;
  }
  if (const auto parallel = openmp().parallel.load()) {
    parallel([](void* one) { static_cast<Call*>(one)->work(); }, &call, static_cast<unsigned>(threads), 0);
  } else {
    Pool::instance().run(threads, call);
  }
}

}  // namespace detail

bool share_openmp() {
#if defined(__unix__) || defined(__APPLE__)
  if (detail::is_forked) {
    return false;
  }
  auto& runtime = detail::openmp();
  runtime.max_threads = reinterpret_cast<detail::OpenMp::MaxThreads>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  runtime.parallel = reinterpret_cast<detail::OpenMp::Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return runtime.parallel.load() != nullptr;
#else
  return false;
#endif
}

namespace {

constexpr int most_threads = 1024;

std::atomic<int>& chosen_threads() {
  static std::atomic<int> threads{0};
  return threads;
}

int environment_threads() {
  const char* text = std::getenv("INVCONV_NUM_THREADS");
  if (text == nullptr || *text == '\0') {
    return 0;
  }
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  if (*end != '\0' || threads < 1 || threads > most_threads) {
    throw Error("[num_threads] expected INVCONV_NUM_THREADS from 1 to " + std::to_string(most_threads) +
                ", but got \"" + text + "\"");
  }
  return static_cast<int>(threads);
}

/// OpenMP's own variable may hold a list, one number for each level of nesting; ours is the first level.
int openmp_environment_threads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const long threads = text != nullptr ? std::strtol(text, nullptr, 10) : 0;
  return threads >= 1 && threads <= most_threads ? static_cast<int>(threads) : 0;
}

}  // namespace

int num_threads() {
  if (const int chosen = chosen_threads(); chosen > 0) {
    return chosen;
  }
  static const int environment = environment_threads();
  if (environment > 0) {
    return environment;
  }
  if (const auto max_threads = detail::openmp().max_threads.load()) {
    return std::clamp(max_threads(), 1, most_threads);
  }
  static const int fallback = [] {
    const int threads = openmp_environment_threads();
    return threads > 0 ? threads : detail::available_processors();
  }();
  return fallback;
}

void set_num_threads(std::int64_t threads) {
  if (threads < 1 || threads > most_threads) {
    throw Error("[set_num_threads] expected threads from 1 to " + std::to_string(most_threads) + ", but got " +
                std::to_string(threads));
  }
  chosen_threads() = static_cast<int>(threads);
}

}  // namespace invconv
