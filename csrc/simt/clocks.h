// What happened before what: vector clocks (Lamport 1978, Mattern 1988).
//
// A thread's own time moves on whenever it lets others know what it has done (at a barrier, for
// one), and it knows of each other thread the last time that came to its knowledge. An earlier
// event happened before a later one if the later one's thread knows of a time of the earlier one's
// that is not before it.

#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace simt {

struct Thread;

using Time = uint32_t;

// What a thread knows: for some blocks, by number, the latest time of each of their threads.
class Known {
public:
    using Times = std::shared_ptr<const std::vector<Time>>;

    Time of(uint32_t block, unsigned rank) const {
        for (const auto& [number, times] : times_)
            if (number == block) return rank < times->size() ? (*times)[rank] : 0;
        return 0;
    }
    void join(const Known& other);
    void set(uint32_t block, Times times);
    void clear() { times_.clear(); }
    // What the copies of a block see is kept beside what its threads know, under this number.
    static uint32_t copies_of(uint32_t block) { return block | uint32_t{1} << 31; }
    const std::vector<std::pair<uint32_t, Times>>& all() const { return times_; }

private:
    std::vector<std::pair<uint32_t, Times>> times_;
};

// A thread's copies are an agent of their own, which has this rank among the threads of its block.
unsigned copier(const Thread& thread);

// Let `to` know what a thread has done, or that its copies up to a time are.
void release(Thread& thread, Known& to);
void release_copies(const Thread& thread, Time time, Known& to);
void acquire(Thread& thread, const Known& from);
// All know what any of them does, and what those knew that arrived without waiting.
void release_at_barrier(const std::vector<Thread*>& threads, const Known& arrived);
void release_by_fence(Thread& thread, bool device_wide);
void release_to_copies(Thread& thread);

}  // namespace simt
