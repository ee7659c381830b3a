#pragma once

// An image that is cut into strips of rows: they follow each other in a pipeline, each a few columns behind the one
// above it, which hands down its last rows by way of the workspace.
//
// Strips are claimed by a ticket, image by image from the top: the strip above has then been claimed before, so that
// whoever waits for it waits for a block that runs. (Nobody promises the order in which blocks start.)
//
// What a block has written before the barrier that its releasing thread has passed is seen by all threads that pass a
// barrier after the acquiring one.

#include "problem.cuh"

namespace invconv::detail::cuda {

template <class A>
struct Pipeline {
  unsigned* ticket;    // null where an image is one strip
  unsigned* progress;  // [strip of all]: columns that it has handed down
  A* edges;            // [strip of all]: its last rows

  // Each by one thread of a block.

  /// The block's strip, counted over all images and groups.
  __device__ Index claim() const { return ticket != nullptr ? Index{atomic_add(ticket, 1)} : Index{blockIdx.x}; }
  /// Waits until the strip above has handed down so many columns; returns how many it has.
  __device__ unsigned wait(Index strip, int columns) const {
    for (;;) {
      const unsigned done = load_acquire(progress + strip - 1);
      if (done >= static_cast<unsigned>(columns)) {
        return done;
      }
      back_off();
    }
  }
  __device__ void hand_down(Index strip, int columns) const {
    store_release(progress + strip, static_cast<unsigned>(columns));
  }
};

}  // namespace invconv::detail::cuda
