#include "cuda_on_host.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <exception>
#include <memory>
#include <new>
#include <numeric>
#include <queue>
#include <random>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef CUDA_ON_HOST_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

// What is done while an Unseen lives is the shim's own business, and no race.
#ifdef CUDA_ON_HOST_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
static int races = 0;
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_on_report(void*) { ++races; }
struct Unseen {
  Unseen() { __tsan_ignore_thread_begin(); }
  ~Unseen() { __tsan_ignore_thread_end(); }
};
#else
static constexpr int races = 0;
struct Unseen {
  Unseen() {}  // lest its objects count as unused
};
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

#ifndef __x86_64__
#error "cuda_on_host_switch() is written for x86-64 only"
#endif

// swapcontext() would do, but its system call takes 0.4 us, and at each call the address sanitizer forgets what it
// knows of the stack. The caller has saved all registers but these.
extern "C" void cuda_on_host_switch(void** from, void* to);
asm(R"(
  .text
cuda_on_host_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");

namespace cuda_on_host {
namespace {

// ---- fibers -------------------------------------------------------------------------------------------------------

/// What it takes to go on on another stack.
struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  void* fake_stack = nullptr;  // of the address sanitizer
  void* tsan_fiber = nullptr;
};

Context scheduler;

/// Returns when `to` switches back: fibers switch to the scheduler only.
void switch_context(Context& from, Context& to) {
#ifdef CUDA_ON_HOST_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
#elif defined(CUDA_ON_HOST_THREAD_SANITIZER)
  __tsan_switch_to_fiber(to.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  cuda_on_host_switch(&from.stack_pointer, to.stack_pointer);
#ifdef CUDA_ON_HOST_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.fake_stack, &to.bottom, &to.bytes);
#endif
}

/// Makes a stack on which `body` begins at the first switch to it. Stacks live as long as the process.
Context make_context(void (*body)()) {
  constexpr std::size_t guard_bytes = 4096, stack_bytes = 256 * 1024;
  void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard_bytes, PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
  Context context;
  context.bottom = static_cast<char*>(memory) + guard_bytes;
  context.bytes = stack_bytes;
  // As if something had called `body`, and that cuda_on_host_switch(): six registers and the address to return to.
  void** top = reinterpret_cast<void**>(static_cast<char*>(memory) + guard_bytes + stack_bytes);
  top[-2] = reinterpret_cast<void*>(body);
  context.stack_pointer = top - 8;
#ifdef CUDA_ON_HOST_THREAD_SANITIZER
  context.tsan_fiber = __tsan_create_fiber(0);
#endif
  return context;
}

/// The events before and after which the thread sanitizer orders those that meet. There are two in turn, since a thread
/// may come to the next meeting before another has left this one.
struct Meetings {
  char* next() { return &events[number % 2]; }
  char events[2] = {};
  unsigned number = 0;
};

enum class State { ready, at_barrier, in_warp_operation, returned };

struct Block;

/// A thread of the device.
struct Fiber {
  unsigned lane() const { return thread % 32; }

  Context context;
  unsigned order = 0;  // among the threads of the resident blocks
  Block* block = nullptr;
  unsigned thread = 0;
  State state = State::returned;
  const char* call = nullptr;  // the latest, and where it was
  Place place;
  unsigned mask = 0;  // of the latest warp operation
  bool shuffles = false;
  unsigned source = 0;
  std::uint64_t sent = 0, received = 0;
  int barriers = 0, warp_syncs = 0;
  Meetings meetings;  // in the calls of __syncwarp() whose first lane this is
};

/// A resident block. When it ends another takes its place.
struct Block {
  /// The lanes that the block has, whether they have returned or not.
  std::span<Fiber* const> warp_of(const Fiber& fiber) const {
    const auto from = std::span(fibers).subspan(fiber.thread - fiber.lane());
    return from.first(std::min<std::size_t>(from.size(), 32));
  }

  unsigned index = 0;
  std::unique_ptr<unsigned char[]> shared;
  std::vector<Fiber*> fibers;
  std::size_t live = 0, at_barrier = 0;
  Place barrier;  // where those wait
  Meetings meetings;
};

bool names(unsigned mask, unsigned lane) { return lane < 32 && (mask >> lane & 1) != 0; }

std::ostream& operator<<(std::ostream& out, Place place) {
  const std::string file = place.file;
  return out << " (" << file.substr(file.rfind('/') + 1) << ':' << place.line << ')';
}

std::string what_it_does(const Fiber& fiber) {
  if (fiber.state == State::returned) {
    return "has returned";
  } else if (fiber.call == nullptr) {
    return "has not begun";
  }
  std::ostringstream out;
  out << (fiber.state == State::ready ? "can go on after " : "waits in ") << fiber.call << fiber.place;
  if (fiber.state == State::in_warp_operation) {
    out << " with mask 0x" << std::hex << fiber.mask;
  }
  return out.str();
}

std::runtime_error error(const Fiber& fiber, const std::string& what) {
  std::ostringstream out;
  out << "block " << fiber.block->index << ", thread " << fiber.thread << ", in " << fiber.call << fiber.place << ": "
      << what;
  return std::runtime_error(out.str());
}

// ---- a launch -----------------------------------------------------------------------------------------------------

/// Thrown, when a launch fails, in the threads that have not returned.
struct Cancelled {};

[[noreturn]] void live();

class Grid;
Grid* grid = nullptr;  // that runs, as does the next
Fiber* current = nullptr;
Counts counts;

class Grid {
 public:
  Grid(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel)
      : shared_bytes_(shared_bytes),
        kernel_(kernel),
        indices_(blocks),
        blocks_(std::min(blocks, std::max(options_.resident_blocks, 1u))) {
    std::iota(indices_.begin(), indices_.end(), 0u);
    std::shuffle(indices_.begin(), indices_.end(), random_);
    for (unsigned order = 0; order < blocks_.size() * threads; ++order) {
      if (order == all_fibers().size()) {
        all_fibers().push_back(std::make_unique<Fiber>());
        all_fibers().back()->context = make_context(live);
      }
      Fiber& fiber = *all_fibers()[order];
      fiber.order = order;
      fiber.block = &blocks_[order / threads];
      fiber.thread = order % threads;
      fiber.block->fibers.push_back(&fiber);
    }
    blockDim.x = threads;
    gridDim.x = blocks;
    counts = {};
    grid = this;
  }
  ~Grid() { grid = nullptr; }
  Grid(const Grid&) = delete;
  Grid& operator=(const Grid&) = delete;

  void run() {
#ifdef CUDA_ON_HOST_THREAD_SANITIZER
    scheduler.tsan_fiber = __tsan_get_current_fiber();
#endif
    __tsan_release(&begin_);
    try {
      std::for_each(blocks_.begin(), blocks_.end(), [this](Block& block) { start(block); });
      while (error_ == nullptr && !ready_.empty()) {
        const auto [key, order] = ready_.top();
        ready_.pop();
        round_ = key >> 32;
        ++counts.switches;
        Fiber& fiber = *all_fibers()[order];
        resume(fiber);
        if (fiber.state == State::returned && error_ == nullptr) {
          end(fiber);
        }
      }
      if (error_ == nullptr &&
          std::any_of(blocks_.begin(), blocks_.end(), [](auto& block) { return block.live > 0; })) {
        throw std::runtime_error("deadlock: " + what_threads_do());
      }
    } catch (...) {
      error_ = std::current_exception();
    }
    cancelled_ = true;
    for (const Block& block : blocks_) {
      for (Fiber* fiber : block.fibers) {
        if (fiber->state != State::returned) {
          resume(*fiber);
        }
      }
    }
    __tsan_acquire(&end_);
    if (error_ != nullptr) {
      std::rethrow_exception(error_);
    }
  }

  // What fibers call.

  void run_thread() {
    __tsan_acquire(&begin_);
    try {
      if (!cancelled_) {
        kernel_();
      }
    } catch (const Cancelled&) {
    } catch (...) {
      if (error_ == nullptr) {
        error_ = std::current_exception();
      }
    }
    __tsan_release(&end_);
    current->state = State::returned;
  }

  void sync_threads(Place place) {
    Fiber& self = called("__syncthreads()", place);
    const int number = self.barriers++;
    counts.barriers = std::max(counts.barriers, self.barriers);
    if (number == options_.dropped_barrier) {
      return;
    }
    Block& block = *self.block;
    if (block.at_barrier > 0 && block.barrier.line != place.line) {
      throw error(self, "others wait in another barrier; " + what_threads_do());
    }
    block.barrier = place;
    ++block.at_barrier;
    self.state = State::at_barrier;
    char* meeting = block.meetings.next();
    __tsan_release(meeting);
    leave_barrier(block);
    suspend();
    __tsan_acquire(meeting);
  }

  void sync_warp(unsigned mask, Place place) {
    Fiber& self = called("__syncwarp()", place);
    const int number = self.warp_syncs++;
    counts.warp_syncs = std::max(counts.warp_syncs, self.warp_syncs);
    if (number == options_.dropped_warp_sync) {
      return;
    }
    self.shuffles = false;
    begin_warp_operation(self, mask, self.lane());
    char* meeting = first_lane(self).meetings.next();
    __tsan_release(meeting);
    leave_warp_operation(self);
    suspend();
    __tsan_acquire(meeting);
  }

  std::uint64_t shuffle(const char* call, unsigned mask, std::uint64_t value, unsigned source, Place place) {
    Fiber& self = called(call, place);
    self.shuffles = true;
    self.sent = value;
    begin_warp_operation(self, mask, source);
    leave_warp_operation(self);
    suspend();
    return self.received;
  }

  void poll(const char* call, Place place, bool progress = false) {
    Fiber& self = called(call, place);
    polls_ = progress ? 0 : polls_ + 1;
    if (polls_ > options_.most_polls) {
      throw error(self, "an endless spin; " + what_threads_do());
    }
    enqueue(self, true);
    suspend();
  }

 private:
  static std::vector<std::unique_ptr<Fiber>>& all_fibers() {
    static auto& fibers = *new std::vector<std::unique_ptr<Fiber>>;
    return fibers;
  }

  Fiber& called(const char* call, Place place) {
    current->call = call;
    current->place = place;
    return *current;
  }

  void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx.x = fiber.thread;
    blockIdx.x = fiber.block->index;
    switch_context(scheduler, fiber.context);
  }

  void suspend() {
    switch_context(current->context, scheduler);
    if (cancelled_) {
      throw Cancelled();
    }
  }

  /// `yields` puts the fiber behind all that can go on, or else one that polls might keep the others from doing what it
  /// waits for. A random key lets a fiber be overtaken, but not for ever.
  void enqueue(Fiber& fiber, bool yields = false) {
    fiber.state = State::ready;
    const std::uint64_t place = options_.schedule == Schedule::ascending ? fiber.order : ~fiber.order;
    ready_.emplace(options_.schedule == Schedule::random ? (counts.switches << 16) + random_() % (window_ << 16)
                                                         : (round_ + yields) << 32 | place,
                   fiber.order);
  }

  void start(Block& block) {
    if (indices_.empty()) {
      return;
    }
    block.index = indices_.back();
    indices_.pop_back();
    block.shared.reset(new unsigned char[shared_bytes_]);
    std::memset(block.shared.get(), 0xff, shared_bytes_);
    block.live = block.fibers.size();
    for (Fiber* fiber : block.fibers) {
      fiber->call = nullptr;
      fiber->barriers = fiber->warp_syncs = 0;
      enqueue(*fiber);
    }
  }

  void end(const Fiber& fiber) {
    polls_ = 0;
    Block& block = *fiber.block;
    if (--block.live == 0) {
      start(block);
      return;
    }
    leave_barrier(block);
    for (const Fiber* other : block.warp_of(fiber)) {
      if (other->state == State::in_warp_operation && names(other->mask, fiber.lane())) {
        leave_warp_operation(*other);
      }
    }
  }

  void leave_barrier(Block& block) {
    if (block.at_barrier < block.live) {
      return;
    }
    block.at_barrier = 0;
    ++block.meetings.number;
    for (Fiber* fiber : block.fibers) {
      if (fiber->state == State::at_barrier) {
        enqueue(*fiber);
      }
    }
  }

  static Fiber& first_lane(const Fiber& fiber) {
    return *fiber.block->warp_of(fiber)[static_cast<unsigned>(std::countr_zero(fiber.mask))];
  }

  void begin_warp_operation(Fiber& self, unsigned mask, unsigned source) {
    self.mask = mask;
    self.source = source;
    if (!names(mask, self.lane())) {
      throw error(self, "the mask lacks the caller");
    } else if (!names(mask, source)) {
      throw error(self, "the mask lacks the source, lane " + std::to_string(static_cast<int>(source)));
    }
    self.state = State::in_warp_operation;
  }

  /// Lets the lanes go on if all have come. Those that have returned need not come, but then must not be shuffled.
  void leave_warp_operation(const Fiber& fiber) {
    const auto lanes = fiber.block->warp_of(fiber);
    const unsigned mask = fiber.mask;
    const auto has_returned = [&](unsigned lane) { return lanes[lane]->state == State::returned; };
    for (const Fiber* other : lanes) {
      const bool has_come = other->state == State::in_warp_operation && other->mask == mask &&
                            (other->call == fiber.call || std::strcmp(other->call, fiber.call) == 0);
      if (!has_come && names(mask, other->lane()) && !has_returned(other->lane())) {
        return;
      }
    }
    for (unsigned lane = 0; fiber.shuffles && lane < 32; ++lane) {
      if (names(mask, lane) && (lane >= lanes.size() || has_returned(lane))) {
        throw error(fiber, "the mask names lane " + std::to_string(lane) +
                               (lane < lanes.size() ? ", which has returned" : ", which the block lacks"));
      }
    }
    ++first_lane(fiber).meetings.number;
    for (Fiber* other : lanes) {
      if (names(mask, other->lane()) && !has_returned(other->lane())) {
        other->received = lanes[other->source]->sent;
        enqueue(*other);
      }
    }
  }

  std::string what_threads_do() const {
    std::ostringstream out;
    for (const Block& block : blocks_) {
      for (std::size_t first = 0, end = 0; block.live > 0 && first < block.fibers.size(); first = end) {
        const std::string what = what_it_does(*block.fibers[first]);
        while (end < block.fibers.size() && what_it_does(*block.fibers[end]) == what) {
          ++end;
        }
        out << (out.str().empty() ? "" : "; ") << "block " << block.index << ", threads " << first << " to " << end - 1
            << ": " << what;
      }
    }
    return out.str();
  }

  const Options options_ = options();
  const std::size_t shared_bytes_;
  const std::function<void()>& kernel_;
  std::mt19937_64 random_{options_.seed};
  const std::uint64_t window_ = std::uint64_t{16} << (random_() % 10);  // switches that may overtake a fiber
  std::vector<unsigned> indices_;                                       // of blocks to start, from the last
  std::vector<Block> blocks_;
  using Entry = std::pair<std::uint64_t, unsigned>;  // a key, of which the least goes on first, and a fiber's order
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> ready_;
  std::uint64_t round_ = 0;
  std::size_t polls_ = 0;
  std::exception_ptr error_;
  bool cancelled_ = false;
  char begin_ = 0, end_ = 0;  // events
};

void live() {
#ifdef CUDA_ON_HOST_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.bytes);
#endif
  for (;;) {
    grid->run_thread();
    switch_context(current->context, scheduler);
  }
}

}  // namespace

Options& options() {
  static Options options;
  return options;
}

const Counts& last_launch() { return counts; }

void* shared_memory() { return current->block->shared.get(); }

std::uint64_t shuffle(const char* call, unsigned mask, std::uint64_t value, unsigned source, Place place) {
  const Unseen unseen;
  return grid->shuffle(call, mask, value, source, place);
}

static void poll(const char* call, Place place, bool progress = false) {
  const Unseen unseen;
  grid->poll(call, place, progress);
}

void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const Unseen unseen;
  if (grid != nullptr) {
    throw std::runtime_error("launch: expected to be called by the host, but a kernel called it");
  }
  if (blocks == 0 || threads == 0 || threads > 1024) {
    throw std::runtime_error("launch: expected at least 1 block of 1 to 1024 threads, but got " +
                             std::to_string(blocks) + " of " + std::to_string(threads));
  }
  if (shared_bytes > most_shared_bytes) {
    throw std::runtime_error("launch: expected at most " + std::to_string(most_shared_bytes) +
                             " bytes of shared memory, but got " + std::to_string(shared_bytes));
  }
  const int races_before = races;
  Grid(blocks, threads, shared_bytes, kernel).run();
  if (races != races_before) {
    throw std::runtime_error("launch: the thread sanitizer has reported a data race");
  }
}

}  // namespace cuda_on_host

void __syncthreads(cuda_on_host::Place place) {
  const Unseen unseen;
  cuda_on_host::grid->sync_threads(place);
}

void __syncwarp(unsigned mask, cuda_on_host::Place place) {
  const Unseen unseen;
  cuda_on_host::grid->sync_warp(mask, place);
}

namespace invconv::detail::cuda {

// Other threads may come both before and after the operation.

unsigned load_acquire(const unsigned* p, cuda_on_host::Place place) {
  cuda_on_host::poll("load_acquire()", place);
  const unsigned value = __atomic_load_n(p, __ATOMIC_ACQUIRE);
  cuda_on_host::poll("load_acquire()", place);
  return value;
}

void store_release(unsigned* p, unsigned value, cuda_on_host::Place place) {
  cuda_on_host::poll("store_release()", place);
  const bool changes = __atomic_load_n(p, __ATOMIC_RELAXED) != value;
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
  cuda_on_host::poll("store_release()", place, changes);
}

unsigned atomic_add(unsigned* p, unsigned value, cuda_on_host::Place place) {
  cuda_on_host::poll("atomic_add()", place);
  const unsigned old = __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
  cuda_on_host::poll("atomic_add()", place, value != 0);
  return old;
}

void back_off(cuda_on_host::Place place) { cuda_on_host::poll("back_off()", place); }

}  // namespace invconv::detail::cuda
