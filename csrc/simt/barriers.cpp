// Where threads meet: warp collectives, named barriers, and the fences that order what they write.

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "findings.h"
#include "machine.h"
#include "traffic.h"

namespace simt {

void release_if_complete(Barrier& barrier, Block& block) {
    const unsigned expected = barrier.expected ? barrier.expected : block.alive;
    if (!barrier.arrived || barrier.arrived < expected) return;
    if (!barrier.expected && barrier.arrived < block.threads.size())
        report("divergent barrier", barrier.first,
               std::to_string(block.threads.size() - barrier.arrived) + " of " +
                   std::to_string(block.threads.size()) +
                   " threads have left the kernel without reaching it");
    if (checking) release_at_barrier(barrier.waiting, barrier.released);
    if (counting) in_step(barrier.waiting);
    for (Thread* thread : barrier.waiting) wake(*thread);
    barrier = {};
}

void report_absent_lane(unsigned lane, Site site) {
    report("wrong mask", site,
           "takes a value from lane " + std::to_string(lane) + ", which does not take part");
}

void collective(const char* name, unsigned mask, void* arguments,
                void (*compute)(void** arguments, unsigned mask), Site site) {
    Thread& thread = *self();
    const unsigned bit = 1u << thread.lane();
    if (!(mask & bit)) {
        report("wrong mask", site, std::string("calls ") + name + " and is not in its mask");
        mask |= bit;
    }
    auto& open = thread.block->collectives[thread.warp()];
    auto mine = std::find_if(open.begin(), open.end(), [&](const Collective& other) {
        return other.mask & mask && !(other.arrived & bit);
    });
    if (mine == open.end()) {
        open.push_back({name, site, mask});
        mine = open.end() - 1;
    } else if (mine->mask != mask || std::strcmp(mine->name, name) != 0) {
        char text[160];
        std::snprintf(
            text, sizeof text,
            "calls %s with mask %#x while others of its warp, at line %d, call %s with %#x", name,
            mask, mine->site.line, mine->name, mine->mask);
        report("wrong mask", site, text);
    }
    mine->arrived |= bit;
    mine->arguments[thread.lane()] = arguments;
    if ((mine->arrived & mine->mask) != mine->mask) return wait(name, site);
    Collective whole = *mine;
    open.erase(mine);
    compute(whole.arguments, whole.mask);
    Block& block = *thread.block;
    if (counting) in_step(block, thread.warp(), whole.arrived);
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (whole.arrived >> lane & 1 && lane != thread.lane())
            wake(block.threads[thread.warp() * kWarp + lane]);
}

void barrier(unsigned id, unsigned expected, bool waits, Site site) {
    Thread& thread = *self();
    Block& block = *thread.block;
    if (id >= kBarriers) return report("wrong barrier", site, "there are barriers 0 to 15");
    Barrier& barrier = block.barriers[id];
    if (!barrier.arrived) {
        barrier.first = site;
        barrier.expected = expected;
    } else if (barrier.expected != expected) {
        report("wrong barrier", site,
               "expects " + std::to_string(expected) + " threads at barrier " + std::to_string(id) +
                   ", where others, at line " + std::to_string(barrier.first.line) + ", expect " +
                   std::to_string(barrier.expected));
    } else if (!expected && (barrier.first.line != site.line ||
                             std::strcmp(barrier.first.file, site.file) != 0)) {
        report("divergent barrier", site,
               "waits here while others of its block wait at line " +
                   std::to_string(barrier.first.line));
    }
    ++barrier.arrived;
    if (!waits) {
        if (checking) release(thread, barrier.released);
        return release_if_complete(barrier, block);
    }
    barrier.waiting.push_back(&thread);
    thread.state = Thread::waiting;
    release_if_complete(barrier, block);
    if (thread.state == Thread::waiting) wait("a barrier", site);
}

// Nobody comes to the next but one barrier before all have read the count of this one.
int count_at_barrier(bool predicate, Site site) {
    Block& block = *self()->block;
    if (!block.barriers[0].arrived) block.votes = !block.votes;
    const int turn = block.votes;
    if (!block.barriers[0].arrived) block.counts[turn] = 0;
    block.counts[turn] += predicate;
    barrier(0, 0, true, site);
    return block.counts[turn];
}

void sync_warp(unsigned mask, Site site) {
    collective(
        "__syncwarp", mask, nullptr,
        [](void**, unsigned lanes) {
            if (!checking) return;
            Block& block = *self()->block;
            std::vector<Thread*> threads;
            for (unsigned lane = 0; lane < kWarp; ++lane)
                if (lanes >> lane & 1)
                    threads.push_back(&block.threads[self()->warp() * kWarp + lane]);
            release_at_barrier(threads, {});
        },
        site);
}

void fence(bool device_wide) {
    if (checking) release_by_fence(*self(), device_wide);
}

}  // namespace simt
