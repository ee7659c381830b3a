#include "threads.hpp"

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "invconv/invconv.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace invconv {

namespace detail {
namespace {

class Pool {
 public:
  /// Never destroyed: its threads sleep until the process ends. After a fork the child has no threads and may have
  /// inherited a locked mutex, so it begins with a new pool.
  static Pool& instance() {
    static const bool registered = [] {
#if defined(__unix__) || defined(__APPLE__)
      pthread_atfork(nullptr, nullptr, [] { current() = nullptr; });
#endif
      return true;
    }();
    static_cast<void>(registered);
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

  void run(int threads, std::int64_t tasks, TaskBody body, void* context) {
    const std::unique_lock alone(busy_, std::try_to_lock);
    if (!alone) {
      for (std::int64_t task = 0; task < tasks; ++task) {
        body(context, task, 0);
      }
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      grow(threads - 1);
      body_ = body;
      context_ = context;
      tasks_ = tasks;
      next_task_ = 0;
      places_ = threads - 1 < size_ ? threads - 1 : size_;
      next_worker_ = 1;
    }
    wake_.notify_all();
    work(0);
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

  void work(int worker) {
    for (;;) {
      const std::int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks_) {
        return;
      }
      body_(context_, task, worker);
    }
  }

  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return places_ > 0; });
      --places_;
      ++working_;
      const int worker = next_worker_++;
      lock.unlock();
      work(worker);
      lock.lock();
      if (--working_ == 0) {
        done_.notify_one();
      }
    }
  }

  std::mutex busy_;  // held by the one caller that uses the pool
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  int size_ = 0;         // threads started
  int places_ = 0;       // helpers that may still join the present call
  int next_worker_ = 1;  // the number of the next one
  int working_ = 0;      // helpers inside the present call
  TaskBody body_ = nullptr;
  void* context_ = nullptr;
  std::int64_t tasks_ = 0;
  std::atomic<std::int64_t> next_task_{0};
};

}  // namespace

void parallel_for(int threads, std::int64_t tasks, TaskBody body, void* context) {
  if (threads > tasks) {
    threads = static_cast<int>(tasks);
  }
  if (threads > 1) {
    Pool::instance().run(threads, tasks, body, context);
    return;
  }
  for (std::int64_t task = 0; task < tasks; ++task) {
    body(context, task, 0);
  }
}

}  // namespace detail

namespace {

constexpr int max_threads = 1024;

std::atomic<int>& chosen_threads() {
  static std::atomic<int> threads{0};
  return threads;
}

int environment_threads() {
  if (const char* text = std::getenv("INVCONV_NUM_THREADS"); text != nullptr && *text != '\0') {
    char* end = nullptr;
    const long threads = std::strtol(text, &end, 10);
    if (*end != '\0' || threads < 1 || threads > max_threads) {
      throw Error("[num_threads] expected INVCONV_NUM_THREADS from 1 to " + std::to_string(max_threads) +
                  ", but got \"" + text + "\"");
    }
    return static_cast<int>(threads);
  }
  // OpenMP's own variable may hold a list, one number for each level of nesting; ours is the first level.
  if (const char* text = std::getenv("OMP_NUM_THREADS"); text != nullptr) {
    const long threads = std::strtol(text, nullptr, 10);
    if (threads >= 1 && threads <= max_threads) {
      return static_cast<int>(threads);
    }
  }
  return 0;
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
  static const int fallback = [] {
    const int threads = environment_threads();
    return threads > 0 ? threads : available_processors();
  }();
  return fallback;
}

void set_num_threads(int threads) {
  if (threads < 1 || threads > max_threads) {
    throw Error("[set_num_threads] expected threads from 1 to " + std::to_string(max_threads) + ", but got " +
                std::to_string(threads));
  }
  chosen_threads() = threads;
}

}  // namespace invconv
