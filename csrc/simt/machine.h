// What is on the machine: grids of blocks of warps of threads, and what they wait for.
//
// A thread of the GPU is a fiber. It runs until it waits for others, or ends; then the scheduler
// takes the next one that can run, in an order that is forward, reversed or random. Blocks that may
// wait for each other (those of a cluster, of a cooperative grid, of several grids launched
// together) are on the machine at once, on one thread of the processor; others take turns, on as
// many as it has.
//
// When nothing can run, copies that are under way land, one at a time, in any order; when there are
// none, no thread will ever run again, and the report says what each waits for.

#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api.h"
#include "check.h"
#include "fiber.h"
#include "types.h"

namespace simt {

constexpr unsigned kBarriers = 16;
constexpr size_t kSharedBytes = 227 * 1024;

struct Block;

// Copies of one thread: those of a group are waited for together, group after group.
struct Copies {
    using Landing = std::function<void()>;
    struct Group {
        std::vector<Landing> land;
        Time last;
    };
    std::vector<Landing> uncommitted;
    std::deque<Group> groups;
};

// Variables of a thread that the products of its warpgroup read or write while it goes on.
struct Registers {
    char* begin;
    size_t bytes;
    bool written;  // by products: the thread may not even read them
    Site site;     // of the last product
    unsigned pending = 0;
    bool touched = false;       // by the thread, with no fence since
    std::vector<float> sums{};  // what they will hold
};

struct Thread {
    enum State { ready, waiting, spinning, done };

    Fiber fiber;
    Block* block = nullptr;
    unsigned rank = 0;  // in its block
    uint3 index{};
    State state = ready;
    const char* waits_for = "";
    Site site;
    Time time = 1;    // moves on when others are let know
    Known known;      // of others, by what orders it after them
    Known fenced[2];  // what its last fence made visible: to its block, to all
    Known heard;      // what it read from atomics, and knows after its next fence

    // Copies under way: their time moves on with each, since they are nobody's who waits.
    Time copy_time = 0;
    Copies loads, stores, products;
    std::vector<Registers> registers;
    bool products_fenced = false;  // at all
    unsigned products_begun = 0;
    Site last_product;
    unsigned cluster_phase = ~0u;  // in which it last arrived at the cluster's barrier

    unsigned lane() const { return rank % kWarp; }
    unsigned warp() const { return rank / kWarp; }
};

// An operation of several lanes of a warp: each leaves a pointer to its arguments, the last to come
// computes for all.
struct Collective {
    const char* name;
    Site site;
    unsigned mask;
    unsigned arrived = 0;
    void* arguments[kWarp] = {};
};

struct Barrier {
    unsigned expected = 0;  // 0: all threads of the block that have not ended
    unsigned arrived = 0;
    Site first;
    std::vector<Thread*> waiting;
    Known released;  // what those that have arrived without waiting know
};

struct PhaseBarrier {
    unsigned count, missing, phase = 0;
    long bytes = 0;          // that are expected and have not landed
    Known gathering, known;  // of those who arrive in this phase; of those of the last one
    std::vector<Thread*> waiting;
    const Thread* maker = nullptr;
    bool announced = false;  // to copies, by a fence of its maker

    explicit PhaseBarrier(unsigned count = 0) : count(count), missing(count) {}
};

struct SharedArray {
    const void* key;
    const char* name;
    size_t offset, bytes;
};

struct Grid {
    Launch launch;
    std::shared_ptr<const void> arguments;
};

using Unit = std::vector<std::pair<const Grid*, uint3>>;  // blocks that are on the machine at once

inline uint3 index_of(unsigned rank, dim3 size) {
    return {rank % size.x, rank / size.x % size.y, rank / (size.x * size.y)};
}

// Where, of 128, 64, 32 or 0 bytes' swizzle, the byte at an offset in shared memory is: 16-byte
// pieces change places within 1024 bytes, so that a column lies in different banks. Bits 4 to 6 of
// the address are combined with bits 7 to 9.
inline size_t swizzled(size_t offset, unsigned swizzle) {
    const size_t mask = swizzle == 128 ? 7 : swizzle == 64 ? 3 : swizzle == 32 ? 1 : 0;
    return offset ^ (offset >> 7 & mask) << 4;
}

struct Block {
    const Grid* grid = nullptr;
    uint3 index{};
    uint32_t number = 0;  // no two have the same, of whatever grid
    unsigned alive = 0;
    std::vector<Thread> threads;
    std::vector<std::vector<Collective>> collectives;  // those under way, for each warp
    Barrier barriers[kBarriers];
    std::map<const void*, PhaseBarrier> phase_barriers;
    int counts[2] = {}, votes = 0;  // what __syncthreads_count adds up, in turns
    std::vector<SharedArray> arrays;
    std::unique_ptr<char[]> memory;
    char* shared = nullptr;  // kSharedBytes, aligned
    size_t shared_used = 0;
    std::vector<Granule> shadow;
    Known ended;                  // what its threads knew when they ended
    std::vector<Block*> cluster;  // its blocks by their rank, this one among them
    Block* leader = nullptr;      // the first block of the grid that is on the machine
    PhaseBarrier cluster_barrier, grid_barrier;  // those of a cluster's and a grid's first block

    bool owns(const void* address) const {
        return size_t(static_cast<const char*>(address) - shared) < kSharedBytes;
    }
};

enum class Order { forward, reversed, random };

struct Options {
    Order order = Order::forward;
    uint64_t seed = 0;
    unsigned processors = 0;  // 0: as many as there are; the check build uses one
    // Whose turns come first, before the order holds: the i-th turn of a block is that of the
    // thread of this number, of those that can run, and the i-th block is that of this number of
    // the rest.
    std::vector<unsigned> choices{};
    int capability = 90;  // of the device, as host code is told: kernels find all there is
    // Milliseconds for which threads that only look for a change are no deadlock: memory that other
    // processes write.
    int patience = 0;
};

Options& options();

// Runs blocks from beginning to end, in an order that the options and the seed decide.
void run_together(const Unit& unit, uint64_t seed);
// A barrier that waits for no more lets its threads go on.
void release_if_complete(Barrier& barrier, Block& block);

// The thread that runs, or null outside of kernels.
Thread* self();
// Whether an address belongs to a thread's own variables.
bool on_a_stack(const void* address);

// Have the thread that runs wait; returns when wake() was called for it.
void wait(const char* what, Site site);
void wake(Thread& thread);
// A copy that is under way. It lands when the scheduler says so.
void begin_copy(std::function<void()> land);
// A thread that has ended is waited for no more.
void leave_cluster(Thread& thread);

// A number of a tensor core's operand, from the registers that hold it.
float element(const uint32_t* registers, unsigned index, Kind kind);

std::string text(uint3 index);
std::string describe(const Thread& thread);

}  // namespace simt
