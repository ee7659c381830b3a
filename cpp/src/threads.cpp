#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "invconv/invconv.hpp"

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
    {
      const std::lock_guard lock(mutex_);
      grow(threads - 1);
      call_ = &call;
      places_ = std::min(threads - 1, size_);
    }
    wake_.notify_all();
    call.work();
    std::unique_lock lock(mutex_);
    places_ = 0;
    done_.wait(lock, [this] { return working_ == 0; });
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
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return places_ > 0; });
      --places_;
      ++working_;
      Call& call = *call_;
      lock.unlock();
      call.work();
      lock.lock();
      if (--working_ == 0) {
        done_.notify_one();
      }
    }
  }

  std::mutex busy_;  // held by the one caller that uses the pool
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  int size_ = 0;     // threads started
  int places_ = 0;   // helpers that may still join the present call
  int working_ = 0;  // helpers inside the present call
  Call* call_ = nullptr;
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
    return threads > 0 ? threads : available_processors();
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
