// Where helpers that ran out of items wait a moment for the next loop.
//
// Layers follow each other within microseconds, but a thread that went back to its pool needs 10
// to 100 of them to be woken, as long as a small product takes in all. So a helper lingers first.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "runtime/job.h"

namespace qgemm {

class Lounge {
 public:
  using Clock = std::chrono::steady_clock;

  // Gives `job` to a helper that lingers; false if none does.
  bool Hand(const std::shared_ptr<Job>& job) {
    if (lingering_.load(std::memory_order_relaxed) == 0) return false;
    for (Seat& seat : seats_) {
      State expected = State::kWaiting;
      if (seat.state.load(std::memory_order_relaxed) != expected ||
          !seat.state.compare_exchange_strong(expected, State::kTaken, std::memory_order_acquire)) {
        continue;
      }
      seat.job = job;
      seat.state.store(State::kHanded, std::memory_order_release);
      return true;
    }
    return false;
  }

  // Waits for a job until `end`; null if none comes, or if there is no seat.
  std::shared_ptr<Job> Linger(Clock::time_point end) {
    Seat* const seat = Sit();
    if (seat == nullptr) return nullptr;
    while (seat->state.load(std::memory_order_relaxed) == State::kWaiting && Clock::now() < end) {
      std::this_thread::yield();  // any other thread that wants this CPU goes first
    }
    lingering_.fetch_sub(1, std::memory_order_relaxed);
    State expected = State::kWaiting;
    if (seat->state.compare_exchange_strong(expected, State::kFree, std::memory_order_release)) {
      return nullptr;
    }
    while (seat->state.load(std::memory_order_acquire) != State::kHanded) SpinPause();
    std::shared_ptr<Job> job = std::move(seat->job);
    seat->state.store(State::kFree, std::memory_order_release);
    return job;
  }

 private:
  enum class State { kFree, kWaiting, kTaken, kHanded };

  struct alignas(64) Seat {
    std::atomic<State> state{State::kFree};
    std::shared_ptr<Job> job;  // its taker's while kTaken, its helper's once kHanded
  };

  Seat* Sit() {
    for (Seat& seat : seats_) {
      State expected = State::kFree;
      if (seat.state.compare_exchange_strong(expected, State::kWaiting,
                                             std::memory_order_acq_rel)) {
        lingering_.fetch_add(1, std::memory_order_relaxed);
        return &seat;
      }
    }
    return nullptr;
  }

  std::array<Seat, 64> seats_;  // more helpers than that go back to their pool at once
  alignas(64) std::atomic<int> lingering_{0};
};

// The one lounge of the process. Never destroyed: helpers may outlive static objects.
inline Lounge& HelperLounge() {
  static Lounge& lounge = *new Lounge;
  return lounge;
}

}  // namespace qgemm
