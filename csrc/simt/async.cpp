// What a GPU does while its threads go on: copies, and the barriers that say when they have landed.
//
// A copy's destination is poisoned when it is begun, and filled as late as can be: a thread's own
// copies (cp.async) when it waits for them, those of the tensor memory accelerator when no thread
// can run, or, in a random order, at any time. For the check build they are accesses of an agent of
// their own, which a thread knows of when it has waited.

#include <algorithm>
#include <cstring>
#include <string>

#include "machine.h"

namespace simt {
namespace {

Block* owner(const void* address) {
    for (Block* block : self()->block->cluster)
        if (block->owns(address)) return block;
    return nullptr;
}

// The barrier at an address in the shared memory of this block or one of its cluster.
PhaseBarrier* find(const void* address, Site site) {
    Block* block = owner(address);
    if (block)
        if (auto entry = block->phase_barriers.find(address); entry != block->phase_barriers.end())
            return &entry->second;
    report("wrong barrier", site, "uses an mbarrier that was not initialised");
    return nullptr;
}

void end_phase_if_complete(PhaseBarrier& barrier) {
    if (barrier.missing || barrier.bytes) return;
    barrier.missing = barrier.count;
    ++barrier.phase;
    barrier.known = std::move(barrier.gathering);
    barrier.gathering = {};
    for (Thread* thread : barrier.waiting) wake(*thread);
    barrier.waiting.clear();
}

bool ended(const PhaseBarrier& barrier, unsigned parity) {
    return (barrier.phase & 1) != parity;
}

// Bytes of a copy of this thread have landed.
void complete(Thread& thread, Time time, const void* address, unsigned bytes) {
    Block* home = nullptr;
    for (Block* block : thread.block->cluster)
        if (block->owns(address)) home = block;
    if (!home || !home->phase_barriers.count(address)) return;
    PhaseBarrier& barrier = home->phase_barriers[address];
    barrier.bytes -= bytes;
    if (checking) release_copies(thread, time, barrier.gathering);
    end_phase_if_complete(barrier);
}

// Where the bytes of a box go: 16-byte pieces change places within 1024 bytes, so that a column of
// the box lies in different banks. Bits 4 to 6 of the address are combined with bits 7 to 9.
size_t swizzled(size_t offset, unsigned swizzle) {
    const size_t mask = swizzle == 128 ? 7 : swizzle == 64 ? 3 : swizzle == 32 ? 1 : 0;
    return offset ^ (offset >> 7 & mask) << 4;
}

// visit(offset in the box, address in the tensor or null outside of it, bytes) for runs of the
// box's innermost dimension.
template <typename Visit>
void each_run(const TensorMap& map, const int* at, Visit visit) {
    unsigned position[5] = {};
    const size_t run = size_t(map.box[0]) * map.element_bytes;
    for (size_t offset = 0;; offset += run) {
        bool inside = true;
        char* address = static_cast<char*>(map.base);
        for (unsigned d = 1; d < map.rank; ++d) {
            const long index = at[d] + long(position[d]);
            inside &= 0 <= index && index < long(map.size[d]);
            address += index * long(map.stride[d]);
        }
        const long first = at[0], last = std::min<long>(first + map.box[0], map.size[0]);
        const long skipped = std::max<long>(0, -first);
        for (unsigned i = 0; i < map.box[0]; ++i) {
            const bool exists = inside && i >= skipped && first + long(i) < last;
            visit(offset + size_t(i) * map.element_bytes,
                  exists ? address + (first + long(i)) * long(map.element_bytes) : nullptr,
                  map.element_bytes);
        }
        unsigned d = 1;
        while (d < map.rank && ++position[d] == map.box[d]) position[d++] = 0;
        if (d >= map.rank) return;
    }
}

size_t box_bytes(const TensorMap& map) {
    size_t bytes = map.element_bytes;
    for (unsigned d = 0; d < map.rank; ++d) bytes *= map.box[d];
    return bytes;
}

}  // namespace

void copy_async(void* to, const void* from, size_t bytes, size_t source_bytes, Site site) {
    Thread& thread = *self();
    if (reinterpret_cast<uintptr_t>(to) % bytes ||
        (source_bytes && reinterpret_cast<uintptr_t>(from) % bytes))
        report("misaligned", site,
               "copies " + std::to_string(bytes) +
                   " bytes from or to a place that is not a multiple of that");
    ++thread.copy_time;
    if (checking) {
        if (source_bytes) check_lane_copy(from, source_bytes, false, site);
        check_lane_copy(to, bytes, true, site);
    }
    std::memset(to, 0xFF, bytes);
    thread.uncommitted.push_back([=] {
        std::memcpy(to, from, source_bytes);
        std::memset(static_cast<char*>(to) + source_bytes, 0, bytes - source_bytes);
    });
}

void commit_copies() {
    Thread& thread = *self();
    thread.groups.push_back({std::move(thread.uncommitted), thread.copy_time});
    thread.uncommitted.clear();
}

void wait_for_copies(unsigned keep, Site) {
    Thread& thread = *self();
    while (thread.groups.size() > keep) {
        CopyGroup group = std::move(thread.groups.front());
        thread.groups.pop_front();
        for (auto land = group.land.rbegin(); land != group.land.rend(); ++land) (*land)();
        if (checking) release_copies(thread, group.last, thread.known);
    }
}

void mbarrier_init(void* barrier, unsigned count, Site site) {
    Block& block = *self()->block;
    if (!block.owns(barrier))
        return report("wrong barrier", site,
                      "initialises an mbarrier outside of its shared memory");
    auto& fresh = block.phase_barriers[barrier];
    if (!fresh.waiting.empty() || fresh.bytes)
        report("wrong barrier", site, "initialises an mbarrier that is in use");
    fresh = {};
    fresh.count = fresh.missing = count;
    fresh.site = site;
    if (checking) release(*self(), fresh.known);
}

void mbarrier_expect(void* address, unsigned bytes, Site site) {
    if (PhaseBarrier* barrier = find(address, site)) barrier->bytes += bytes;
}

void mbarrier_arrive(void* address, unsigned expected_bytes, Site site) {
    PhaseBarrier* barrier = find(address, site);
    if (!barrier) return;
    if (!barrier->missing)
        return report("double arrival", site,
                      "arrives at an mbarrier whose " + std::to_string(barrier->count) +
                          " arrivals of this phase have all been");
    barrier->bytes += expected_bytes;
    if (checking) {
        release(*self(), barrier->gathering);
    }
    --barrier->missing;
    end_phase_if_complete(*barrier);
}

void mbarrier_arrive_after_copies(void* address, Site site) {
    wait_for_copies(0, site);
    mbarrier_arrive(address, 0, site);
}

bool mbarrier_test(const void* address, unsigned parity, Site site) {
    PhaseBarrier* barrier = find(address, site);
    if (!barrier) return true;
    if (!ended(*barrier, parity)) {
        spin("an mbarrier", site);
        return false;
    }
    if (checking) acquire(*self(), barrier->known);
    return true;
}

void mbarrier_wait(const void* address, unsigned parity, Site site) {
    PhaseBarrier* barrier = find(address, site);
    if (!barrier) return;
    while (!ended(*barrier, parity)) {
        barrier->waiting.push_back(self());
        wait("an mbarrier", site);
    }
    if (checking) acquire(*self(), barrier->known);
}

void tensor_load(void* to, const TensorMap& given, const int* where, void* barrier,
                 unsigned cta_mask, Site site) {
    Thread& thread = *self();
    const TensorMap map = given;
    int at[5] = {};
    std::copy(where, where + map.rank, at);
    const size_t bytes = box_bytes(map);
    if (reinterpret_cast<uintptr_t>(to) % 128)
        report("misaligned", site, "a tensor copy's place in shared memory is a multiple of 128");
    ++thread.copy_time;
    for (unsigned rank = 0; rank < thread.block->cluster.size(); ++rank) {
        if (!(cta_mask >> rank & 1)) continue;
        char* target = static_cast<char*>(in_block(to, rank));
        void* signal = in_block(barrier, rank);
        if (checking) {
            check_copy(target, bytes, true, site);
            each_run(map, at, [&](size_t, char* address, size_t n) {
                if (address) check_copy(address, n, false, site);
            });
        }
        std::memset(target, 0xFF, bytes);
        const char* base = thread.block->cluster[rank]->shared;
        begin_copy([=, &thread, time = thread.copy_time] {
            int corner[5];
            std::copy(at, at + 5, corner);
            each_run(map, corner, [&](size_t offset, char* address, size_t n) {
                const size_t place = swizzled(target + offset - base, map.swizzle);
                if (address)
                    std::memcpy(const_cast<char*>(base) + place, address, n);
                else
                    std::memset(const_cast<char*>(base) + place, 0, n);
            });
            complete(thread, time, signal, unsigned(bytes));
        });
    }
}

void tensor_store(const TensorMap& given, const int* where, const void* from, bool add, Site site) {
    Thread& thread = *self();
    const TensorMap map = given;
    ++thread.copy_time;
    if (checking) {
        check_copy(from, box_bytes(map), false, site);
        each_run(map, where, [&](size_t, char* address, size_t n) {
            if (address) check_copy(address, n, true, site);
        });
    }
    const char* base = owner(from)->shared;
    int at[5] = {};
    std::copy(where, where + map.rank, at);
    thread.uncommitted.push_back([=] {
        int corner[5];
        std::copy(at, at + 5, corner);
        each_run(map, corner, [&](size_t offset, char* address, size_t n) {
            const char* source =
                base + swizzled(static_cast<const char*>(from) + offset - base, map.swizzle);
            if (!address) return;
            if (add) {
                float sum, term;
                std::memcpy(&sum, address, 4);
                std::memcpy(&term, source, 4);
                sum += term;
                std::memcpy(address, &sum, 4);
            } else {
                std::memcpy(address, source, n);
            }
        });
    });
}

void bulk_load(void* to, const void* from, unsigned bytes, void* barrier, Site site) {
    Thread& thread = *self();
    if (bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16 ||
        reinterpret_cast<uintptr_t>(from) % 16)
        report("misaligned", site, "a bulk copy moves multiples of 16 bytes");
    ++thread.copy_time;
    if (checking) {
        check_copy(from, bytes, false, site);
        check_copy(to, bytes, true, site);
    }
    std::memset(to, 0xFF, bytes);
    begin_copy([=, &thread, time = thread.copy_time] {
        std::memcpy(to, from, bytes);
        complete(thread, time, barrier, bytes);
    });
}

void bulk_store(void* to, const void* from, unsigned bytes, Site site) {
    Thread& thread = *self();
    ++thread.copy_time;
    if (checking) {
        check_copy(from, bytes, false, site);
        check_copy(to, bytes, true, site);
    }
    thread.uncommitted.push_back([=] { std::memcpy(to, from, bytes); });
}

void commit_stores() {
    commit_copies();
}
void wait_for_stores(unsigned keep, Site site) {
    wait_for_copies(keep, site);
}

void proxy_fence() {
    if (checking) check_proxy_fence(*self());
}

unsigned cluster_rank() {
    const Block& block = *self()->block;
    const auto& all = block.cluster;
    return unsigned(std::find(all.begin(), all.end(), &block) - all.begin());
}

unsigned cluster_blocks() {
    return unsigned(self()->block->cluster.size());
}

void* in_block(void* address, unsigned rank) {
    Block& block = *self()->block;
    if (!block.owns(address) || rank >= block.cluster.size()) return address;
    return block.cluster[rank]->shared + (static_cast<char*>(address) - block.shared);
}

// A barrier that is arrived at and waited for in two steps, by all threads of some blocks.
static void arrive(PhaseBarrier& barrier, unsigned threads) {
    if (!barrier.count) barrier.count = barrier.missing = threads;
    if (checking) release(*self(), barrier.gathering);
    --barrier.missing;
    end_phase_if_complete(barrier);
}

static void wait_for_phase(PhaseBarrier& barrier, unsigned phase, const char* what, Site site) {
    while (barrier.phase == phase) {
        barrier.waiting.push_back(self());
        wait(what, site);
    }
    if (checking) acquire(*self(), barrier.known);
}

void cluster_arrive(Site) {
    Block& first = *self()->block->cluster[0];
    self()->cluster_phase = first.cluster_barrier.phase;
    arrive(first.cluster_barrier, unsigned(first.cluster.size() * first.threads.size()));
}

void cluster_wait(Site site) {
    wait_for_phase(self()->block->cluster[0]->cluster_barrier, self()->cluster_phase,
                   "the cluster's barrier", site);
}

void sync_grid(Site site) {
    Block& block = *self()->block;
    const Launch& launch = block.grid->launch;
    if (!launch.cooperative)
        return report("wrong barrier", site, "waits for the grid; the launch is not cooperative");
    PhaseBarrier& barrier = block.leader->grid_barrier;
    const unsigned phase = barrier.phase;
    arrive(barrier, launch.grid.size() * launch.block.size());
    wait_for_phase(barrier, phase, "the grid's barrier", site);
}

}  // namespace simt
