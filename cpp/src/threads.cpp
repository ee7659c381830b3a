#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <span>
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

namespace {

constexpr int most_threads = 1024;

}  // namespace

namespace detail {
namespace {

/// The tasks of one call, which any number of threads may take.
class Call {
 public:
  Call(int threads, std::span<const TaskList> lists, TaskBody body, void* context)
      : threads_(threads), lists_(lists), body_(body), context_(context) {
    assert(lists.size() <= most_task_lists);
  }

  /// Takes tasks of every list: first of the worker's own share, then of the others'.
  void work(int worker) {
    for (std::size_t list = 0; list < lists_.size(); ++list) {
      const auto [count, order] = lists_[list];
      const int shares = order == Order::given ? 1 : std::min(threads_, most_shares);
      const int own = static_cast<int>(std::int64_t{worker} * shares / threads_);
      for (int turn = 0; turn < shares; ++turn) {
        const int share = (own + turn) % shares;
        // The caller, who is first, has the largest one.
        const std::int64_t begin = (count * share + shares - 1) / shares;
        const std::int64_t end = (count * (share + 1) + shares - 1) / shares;
        for (;;) {
          // In the given order, whoever takes a task sees what the others did before they took theirs: bands of rows
          // that follow each other take over the memory of those that are over.
          const std::int64_t task = begin + taken_[list][share].count.fetch_add(1, std::memory_order_acq_rel);
          if (task >= end) {
            break;
          }
          body_(context_, static_cast<int>(list), task, worker);
        }
      }
    }
  }

 private:
  static constexpr int most_shares = 32;
  struct alignas(64) Taken {
    std::atomic<std::int64_t> count{0};
  };

  int threads_;
  std::span<const TaskList> lists_;
  TaskBody body_;
  void* context_;
  Taken taken_[most_task_lists][most_shares];
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
      call.work(0);
      return;
    }
    grow(threads - 1);
    call_ = &call;
    spins_ = threads <= available_processors();
    {
      // Locked, so that no helper falls asleep between its last look and the notification.
      const std::lock_guard lock(mutex_);
      state_ = (place + wanted) * static_cast<std::uint64_t>(std::min(threads - 1, size_));
    }
    wake_.notify_all();
    call.work(0);
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
        std::thread([this, worker = size_ + 1] { serve(worker); }).detach();
      }
    } catch (const std::system_error&) {
      // No more threads to be had: those that there are do the work.
    }
  }

  /// A helper is the same worker in every call, so its core has the memory of the last one in its caches.
  void serve(int worker) {
    const auto joins = [this, worker] {
      for (std::uint64_t state = state_; state % wanted >= place && state / wanted >= static_cast<unsigned>(worker);) {
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
      call_->work(worker);
      if (state_.fetch_sub(working) == caller_sleeps + working) {
        const std::lock_guard lock(mutex_);
        done_.notify_one();
      }
    }
  }

  // What state_ counts: helpers inside the present call, those that may still join it, and those that it wants, which
  // are the first ones; after the first count, a flag.
  static constexpr std::uint64_t working = 1, caller_sleeps = 1 << 15, place = 1 << 16, wanted = std::uint64_t{1} << 32;

  std::mutex busy_;  // held by the one caller that uses the pool
  int size_ = 0;     // threads started
  Call* call_ = nullptr;
  bool spins_ = false;  // whether there are processors enough for the threads of the present call
  std::atomic<std::uint64_t> state_{0};
  std::mutex mutex_;  // locked to sleep, and to be sure that nobody is just about to
  std::condition_variable wake_, done_;
};

/// The entry points of an OpenMP runtime that other code of this process has loaded.
struct OpenMp {
  using Parallel = void (*)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
  using GetNumber = int (*)();
  std::atomic<Parallel> parallel{nullptr};
  std::atomic<GetNumber> thread_num{nullptr}, max_threads{nullptr};
};

OpenMp& openmp() {
  static OpenMp runtime;
  return runtime;
}

#if defined(__unix__) || defined(__APPLE__)
/// Another library's omp_get_thread_num, a stub that always says 0 perhaps, would give several threads one number.
bool in_one_library(const void* a, const void* b) {
  Dl_info of_a, of_b;
  return a != nullptr && b != nullptr && dladdr(a, &of_a) != 0 && dladdr(b, &of_b) != 0 &&
         of_a.dli_fbase == of_b.dli_fbase;
}
#endif

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

void parallel_for(int threads, std::span<const TaskList> lists, TaskBody body, void* context) {
  std::int64_t tasks = 0;
  for (const TaskList& list : lists) {
    tasks += list.count;
  }
  threads = static_cast<int>(std::min<std::int64_t>(std::min(threads, most_threads), tasks));
  Call call(std::max(threads, 1), lists, body, context);
  if (threads <= 1) {
    call.work(0);
    return;
  }
  if (const auto parallel = openmp().parallel.load()) {
    const auto work = [](void* self) { static_cast<Call*>(self)->work(openmp().thread_num.load()()); };
    parallel(work, &call, static_cast<unsigned>(threads), 0);
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
  using detail::OpenMp;
  OpenMp& runtime = detail::openmp();
  runtime.max_threads = reinterpret_cast<OpenMp::GetNumber>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  void* const parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
  void* const thread_num = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
  const bool agree = detail::in_one_library(parallel, thread_num);
  runtime.thread_num = reinterpret_cast<OpenMp::GetNumber>(thread_num);
  runtime.parallel = agree ? reinterpret_cast<OpenMp::Parallel>(parallel) : nullptr;
  return runtime.parallel.load() != nullptr;
#else
  return false;
#endif
}

namespace {

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
