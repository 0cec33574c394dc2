// What a GPU does while its threads go on: copies, and the barriers that say when they have landed.
//
// A copy's destination is poisoned when it is begun, and filled as late as can be: a thread's own
// copies (cp.async) when it waits for them, those of the tensor memory accelerator when no thread
// can run, or, in a random order, at any time. For the check build they are accesses of an agent of
// their own, which a thread knows of when it has waited.

#include <algorithm>
#include <cstring>
#include <string>

#include "findings.h"
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
        if (auto entry = block->phase_barriers.find(address);
            entry != block->phase_barriers.end()) {
            if (checking) check_mbarrier(address, site);
            return &entry->second;
        }
    report("wrong barrier", site, "uses an mbarrier that was not initialised");
    return nullptr;
}

// Copies know of a barrier when its maker's fence has told them.
void require_announced(const void* address, Site site) {
    const PhaseBarrier* barrier = find(address, site);
    if (barrier && !barrier->announced)
        report(
            "missing fence", site,
            "begins a copy that signals an mbarrier, without a fence since that was initialised");
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
    for (Block* block : thread.block->cluster) {
        const auto barrier = block->phase_barriers.find(address);
        if (barrier == block->phase_barriers.end()) continue;
        barrier->second.bytes -= bytes;
        if (checking) release_copies(thread, time, barrier->second.gathering);
        end_phase_if_complete(barrier->second);
    }
}

// visit(offset in the box, address in the tensor or null outside of it) for each element of a box.
template <typename Visit>
void each_element(const TensorMap& map, const int* at, Visit visit) {
    unsigned position[5] = {};
    for (size_t offset = 0;; offset += map.element_bytes) {
        bool inside = true;
        char* address = static_cast<char*>(map.base);
        for (unsigned d = 0; d < map.rank; ++d) {
            const long index = at[d] + long(position[d]);
            inside &= 0 <= index && index < long(map.size[d]);
            address += index * long(map.stride[d]);
        }
        visit(offset, inside ? address : nullptr);
        unsigned d = 0;
        while (d < map.rank && ++position[d] == map.box[d]) position[d++] = 0;
        if (d == map.rank) return;
    }
}

void commit(Copies& copies) {
    copies.groups.push_back({std::move(copies.uncommitted), self()->copy_time});
    copies.uncommitted.clear();
}

// Those of a group land in the order in which they were not begun.
void land_all_but(unsigned keep, Copies& copies) {
    while (copies.groups.size() > keep) {
        const Copies::Group group = std::move(copies.groups.front());
        copies.groups.pop_front();
        for (auto land = group.land.rbegin(); land != group.land.rend(); ++land) (*land)();
        if (checking) release_copies(*self(), group.last, self()->known);
    }
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
    thread.loads.uncommitted.push_back([=] {
        std::memcpy(to, from, source_bytes);
        std::memset(static_cast<char*>(to) + source_bytes, 0, bytes - source_bytes);
    });
}

void commit_copies() {
    commit(self()->loads);
}
void wait_for_copies(unsigned keep) {
    land_all_but(keep, self()->loads);
}

void mbarrier_init(void* barrier, unsigned count, Site site) {
    Block& block = *self()->block;
    if (!block.owns(barrier))
        return report("wrong barrier", site,
                      "initialises an mbarrier outside of its shared memory");
    auto& fresh = block.phase_barriers[barrier];
    if (!fresh.waiting.empty() || fresh.bytes)
        report("wrong barrier", site, "initialises an mbarrier that is in use");
    fresh = PhaseBarrier(count);
    fresh.maker = self();
    if (checking) check_access(barrier, 8, true, site);
}

void mbarrier_fence() {
    for (auto& [address, barrier] : self()->block->phase_barriers)
        if (barrier.maker == self()) barrier.announced = true;
}

void mbarrier_arrive(void* address, unsigned expected_bytes, Site site) {
    PhaseBarrier* barrier = find(address, site);
    if (!barrier) return;
    if (!barrier->missing)
        return report("double arrival", site,
                      "arrives at an mbarrier whose " + std::to_string(barrier->count) +
                          " arrivals of this phase have all been");
    barrier->bytes += expected_bytes;
    if (checking) release(*self(), barrier->gathering);
    --barrier->missing;
    end_phase_if_complete(*barrier);
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

// A box of a tensor, and where it lies in the shared memory of one block.
struct Box {
    TensorMap map;
    int at[5] = {};
    char *shared, *place;

    Box(const TensorMap& map, const int* where, const Block& block, void* place)
        : map(map), shared(block.shared), place(static_cast<char*>(place)) {
        std::copy(where, where + map.rank, at);
    }
    size_t bytes() const {
        size_t product = map.element_bytes;
        for (unsigned d = 0; d < map.rank; ++d) product *= map.box[d];
        return product;
    }
    // visit(in shared memory, in the tensor or null) for each element.
    template <typename Visit>
    void each(Visit visit) const {
        each_element(map, at, [&](size_t offset, char* element) {
            visit(shared + swizzled(place + offset - shared, map.swizzle), element);
        });
    }
    void check(bool stores, Site site) const {
        check_copy(place, bytes(), !stores, site);
        each([&](char*, char* element) {
            if (element) check_copy(element, map.element_bytes, stores, site);
        });
    }
    void load() const {
        each([&](char* to, char* element) {
            if (element)
                std::memcpy(to, element, map.element_bytes);
            else
                std::memset(to, 0, map.element_bytes);
        });
    }
    void store() const {
        each([&](char* from, char* element) {
            if (element) std::memcpy(element, from, map.element_bytes);
        });
    }
};

void tensor_load(void* to, const TensorMap& map, const int* at, void* barrier, unsigned cta_mask,
                 Site site) {
    Thread& thread = *self();
    if (reinterpret_cast<uintptr_t>(to) % 128)
        report("misaligned", site, "a tensor copy's place in shared memory is a multiple of 128");
    ++thread.copy_time;
    for (unsigned rank = 0; rank < thread.block->cluster.size(); ++rank) {
        if (!(cta_mask >> rank & 1)) continue;
        const Box box(map, at, *thread.block->cluster[rank], in_block(to, rank));
        void* signal = in_block(barrier, rank);
        require_announced(signal, site);
        if (checking) box.check(false, site);
        std::memset(box.place, 0xFF, box.bytes());
        begin_copy([=, &thread, time = thread.copy_time] {
            box.load();
            complete(thread, time, signal, unsigned(box.bytes()));
        });
    }
}

void tensor_store(const TensorMap& map, const int* at, const void* from, Site site) {
    Thread& thread = *self();
    const Box box(map, at, *thread.block, const_cast<void*>(from));
    ++thread.copy_time;
    if (checking) box.check(true, site);
    thread.stores.uncommitted.push_back([=] { box.store(); });
}

void bulk_load(void* to, const void* from, unsigned bytes, void* barrier, Site site) {
    Thread& thread = *self();
    if (bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16 ||
        reinterpret_cast<uintptr_t>(from) % 16)
        report("misaligned", site, "a bulk copy moves multiples of 16 bytes");
    require_announced(barrier, site);
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
    thread.stores.uncommitted.push_back([=] { std::memcpy(to, from, bytes); });
}

void commit_stores() {
    commit(self()->stores);
}
void wait_for_stores(unsigned keep) {
    land_all_but(keep, self()->stores);
}

void proxy_fence() {
    mbarrier_fence();
    if (checking) release_to_copies(*self());
}

unsigned cluster_rank() {
    const Block& block = *self()->block;
    const auto& all = block.cluster;
    return unsigned(std::find(all.begin(), all.end(), &block) - all.begin());
}

void* in_block(void* address, unsigned rank) {
    Block& block = *self()->block;
    if (!block.owns(address) || rank >= block.cluster.size()) return address;
    return block.cluster[rank]->shared + (static_cast<char*>(address) - block.shared);
}

// A barrier that is arrived at and waited for in two steps, by all threads of some blocks.
static void arrive(PhaseBarrier& barrier) {
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

void cluster_arrive(Site site) {
    PhaseBarrier& barrier = self()->block->cluster[0]->cluster_barrier;
    if (self()->cluster_phase == barrier.phase)
        return report("double arrival", site,
                      "arrives at the cluster's barrier twice without waiting for it");
    self()->cluster_phase = barrier.phase;
    arrive(barrier);
}

void cluster_wait(Site site) {
    wait_for_phase(self()->block->cluster[0]->cluster_barrier, self()->cluster_phase,
                   "the cluster's barrier", site);
}

void leave_cluster(Thread& thread) {
    PhaseBarrier& barrier = thread.block->cluster[0]->cluster_barrier;
    --barrier.count;
    if (thread.cluster_phase != barrier.phase) --barrier.missing;
    end_phase_if_complete(barrier);
}

void sync_grid(Site site) {
    Block& block = *self()->block;
    if (!block.grid->launch.cooperative)
        return report("wrong barrier", site, "waits for the grid; the launch is not cooperative");
    PhaseBarrier& barrier = block.leader->grid_barrier;
    const unsigned phase = barrier.phase;
    arrive(barrier);
    wait_for_phase(barrier, phase, "the grid's barrier", site);
}

}  // namespace simt
