#include "clocks.h"

#include <algorithm>

#include "machine.h"

namespace simt {

void Known::join(const Known& other) {
    for (const auto& [number, theirs] : other.times_) {
        auto mine = std::find_if(times_.begin(), times_.end(),
                                 [&](const auto& entry) { return entry.first == number; });
        if (mine == times_.end()) {
            times_.emplace_back(number, theirs);
        } else if (mine->second != theirs) {
            auto both = std::make_shared<std::vector<Time>>(*mine->second);
            both->resize(std::max(both->size(), theirs->size()));
            for (size_t i = 0; i < theirs->size(); ++i)
                (*both)[i] = std::max((*both)[i], (*theirs)[i]);
            mine->second = both;
        }
    }
}

void Known::set(uint32_t block, Times times) {
    for (auto& entry : times_)
        if (entry.first == block) {
            entry.second = std::move(times);
            return;
        }
    times_.emplace_back(block, std::move(times));
}

unsigned copier(const Thread& thread) {
    return unsigned(thread.block->threads.size()) + thread.rank;
}

// What is known of a block's threads, and of their copies: to be changed, and set again.
static std::shared_ptr<std::vector<Time>> times_of(const Known& known, uint32_t number,
                                                   const Block& block) {
    auto times = std::make_shared<std::vector<Time>>(2 * block.threads.size());
    for (unsigned i = 0; i < times->size(); ++i) (*times)[i] = known.of(number, i);
    return times;
}

void release(Thread& thread, Known& to) {
    to.join(thread.known);
    const auto times = times_of(to, thread.block->number, *thread.block);
    (*times)[thread.rank] = thread.time++;
    to.set(thread.block->number, times);
}

void release_copies(const Thread& thread, Time time, Known& to) {
    const auto times = times_of(to, thread.block->number, *thread.block);
    Time& mine = (*times)[copier(thread)];
    mine = std::max(mine, time);
    to.set(thread.block->number, times);
}

void acquire(Thread& thread, const Known& from) {
    thread.known.join(from);
}

void release_at_barrier(const std::vector<Thread*>& threads, const Known& arrived) {
    Known all = arrived;
    for (const Thread* thread : threads) all.join(thread->known);
    // Own times, block by block: the threads of one block lie together.
    for (size_t begin = 0; begin < threads.size();) {
        const Block& block = *threads[begin]->block;
        const auto times = times_of(all, block.number, block);
        for (; begin < threads.size() && threads[begin]->block == &block; ++begin)
            (*times)[threads[begin]->rank] = threads[begin]->time++;
        all.set(block.number, times);
    }
    for (Thread* thread : threads) thread->known = all;
}

void release_by_fence(Thread& thread, bool device_wide) {
    thread.known.join(thread.heard);
    thread.fenced[0].clear();
    release(thread, thread.fenced[0]);
    if (device_wide) thread.fenced[1] = thread.fenced[0];
}

void release_to_copies(Thread& thread) {
    const uint32_t copies = Known::copies_of(thread.block->number);
    const auto times = times_of(thread.known, copies, *thread.block);
    (*times)[thread.rank] = thread.time++;
    thread.known.set(copies, times);
}

}  // namespace simt
