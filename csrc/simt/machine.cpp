// A processor's thread that runs the fibers of some blocks in turns, and their shared memory.

#include "machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include "findings.h"
#include "traffic.h"
#include "turns.h"

namespace simt {
namespace {

thread_local Thread* current = nullptr;
std::atomic<uint32_t> next_block{1};

// Shared memory for an array, or null if there is not enough. 0xFF is a NaN in every floating type,
// and an index that is out of bounds.
void* place(Block& block, const void* key, const char* name, size_t bytes, size_t alignment) {
    constexpr size_t gap = 128;  // nobody's, so that what is beyond an array is no other's
    const size_t offset = (block.shared_used + alignment - 1) / alignment * alignment;
    if (offset + bytes > kSharedBytes) return nullptr;
    block.arrays.push_back({key, name, offset, bytes});
    block.shared_used = offset + (bytes + gap - 1) / gap * gap + gap;
    std::memset(block.shared + offset, 0xFF, bytes);
    return block.shared + offset;
}

// One thread of the processor, and the blocks that it runs.
class Machine {
public:
    void run(const Unit& unit, uint64_t seed) {
        random_ = seed;
        while (blocks_.size() < unit.size()) blocks_.push_back(std::make_unique<Block>());
        size_t stacks = 0;
        alive_ = 0;
        order_.clear();
        for (size_t i = 0; i < unit.size(); ++i) {
            prepare(*blocks_[i], *unit[i].first, unit[i].second);
            for (Thread& thread : blocks_[i]->threads) {
                make_fiber(thread.fiber, stacks_.at(stacks++), Stacks::kBytes, begin_thread);
                order_.push_back(&thread);
            }
        }
        alive_ = order_.size();
        join_clusters(unit);
        queue_in_streams(unit);
        if (options().order == Order::reversed) std::reverse(order_.begin(), order_.end());
        for (const unsigned choice : options().choices) take_chosen_turn(choice);
        for (int idle = 0; alive_ > 0;) {
            if (options().order == Order::random) shuffle();
            if (go_round()) {
                idle = 0;
                if (options().order == Order::random && random() % 8 == 0) land_one();
            } else if (!land_one() && !waits_on(++idle)) {
                report_deadlock();
                break;
            }
        }
        copies_.clear();
        if (counting)
            for (size_t i = 0; i < unit.size(); ++i) end_of_block(*blocks_[i]);
    }

    void give_way(Thread::State state, const char* what, Site site) {
        Thread& thread = *current;
        thread.state = state;
        thread.waits_for = what;
        thread.site = site;
        switch_fiber(thread.fiber, scheduler_);
    }

    void begin_copy(std::function<void()> land) { copies_.push_back(std::move(land)); }
    bool on_a_stack(const void* address) const { return stacks_.contains(address); }

    uint64_t random() {  // SplitMix64, Steele et al. 2014
        uint64_t z = random_ += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return z ^ z >> 31;
    }

private:
    static constexpr int kPatience = 100;  // rounds in which threads only look for a change

    // Whether something may still change after so many rounds.
    static bool waits_on(int idle) {
        if (idle <= kPatience) return true;
        if (idle > kPatience + options().patience) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return true;
    }

    static void prepare(Block& block, const Grid& grid, uint3 index) {
        block.grid = &grid;
        block.index = index;
        block.number = next_block++;
        const unsigned count = grid.launch.block.size();
        block.alive = count;
        block.threads.clear();
        block.threads.resize(count);
        for (unsigned i = 0; i < count; ++i) {
            block.threads[i].block = &block;
            block.threads[i].rank = i;
            block.threads[i].index = index_of(i, grid.launch.block);
        }
        block.collectives.assign((count + kWarp - 1) / kWarp, {});
        for (Barrier& barrier : block.barriers) barrier = {};
        block.phase_barriers.clear();
        block.cluster = {&block};
        block.ended.clear();
        if (!block.memory) {
            block.memory = std::make_unique<char[]>(kSharedBytes + 1024);
            const auto begin = reinterpret_cast<uintptr_t>(block.memory.get());
            block.shared = block.memory.get() + (1024 - begin % 1024) % 1024;
            block.shadow.resize(kSharedBytes / 4);
        }
        block.arrays.clear();
        block.shared_used = 0;
        if (const size_t bytes = grid.launch.dynamic_bytes)
            place(block, nullptr, "dynamic shared memory", bytes, 1024);
    }

    void join_clusters(const Unit& unit) {
        std::map<std::tuple<const Grid*, unsigned, unsigned, unsigned>, std::vector<Block*>>
            clusters;
        for (size_t i = 0; i < unit.size(); ++i) {
            const auto& [grid, at] = unit[i];
            const dim3 size = grid->launch.cluster;
            clusters[{grid, at.x / size.x, at.y / size.y, at.z / size.z}].push_back(
                blocks_[i].get());
        }
        for (const auto& [where, members] : clusters) {
            for (Block* block : members) block->cluster = members;
            const size_t threads = members.size() * members[0]->threads.size();
            members[0]->cluster_barrier = PhaseBarrier(unsigned(threads));
        }
        std::map<const Grid*, Block*> leaders;
        for (size_t i = 0; i < unit.size(); ++i)
            blocks_[i]->leader = leaders.try_emplace(unit[i].first, blocks_[i].get()).first->second;
        for (const auto& [grid, leader] : leaders)
            leader->grid_barrier =
                PhaseBarrier(grid->launch.grid.size() * grid->launch.block.size());
    }

    // A grid whose stream has another one before it begins when that has ended.
    void queue_in_streams(const Unit& unit) {
        queues_.clear();
        std::map<const void*, const Grid*> last;
        for (size_t i = 0; i < unit.size(); ++i) {
            const Grid* grid = unit[i].first;
            Queued& queued = queues_[grid];
            if (!queued.running && grid->launch.stream)
                queued.before = std::exchange(last[grid->launch.stream], grid);
            queued.running += blocks_[i]->alive;
            if (!queued.before) continue;
            for (Thread& thread : blocks_[i]->threads) {
                thread.state = Thread::waiting;
                thread.waits_for = "the grid before it in its stream";
                thread.site = {"", 0};
            }
        }
    }

    void end_in_stream(Thread& thread) {
        const Grid* grid = thread.block->grid;
        if (!grid->launch.stream) return;
        Queued& queued = queues_[grid];
        if (checking) release(thread, queued.known);
        if (--queued.running) return;
        for (Thread* next : order_)
            if (queues_[next->block->grid].before == grid) {
                if (checking) acquire(*next, queued.known);
                wake(*next);
            }
    }

    static void begin_thread();

    void end_thread(Thread& thread) {
        Block& block = *thread.block;
        --block.alive;
        --alive_;
        end_in_stream(thread);
        if (checking && !block.alive) check_warpgroups(block);
        release_if_complete(block.barriers[0], block);
        if (block.cluster.size() > 1) {
            if (checking) check_end(thread);
            leave_cluster(thread);
        }
        give_way(Thread::done, "", {"", 0});
    }

    static bool can_run(const Thread& thread) {
        return thread.state == Thread::ready || thread.state == Thread::spinning;
    }

    // Whether anything happened.
    bool go_round() {
        bool moved = false;
        for (Thread* thread : order_) {
            if (!can_run(*thread)) continue;
            take_turn(*thread);
            moved |= thread->state != Thread::spinning;
        }
        return moved;
    }

    void take_turn(Thread& thread) {
        thread.state = Thread::ready;
        current = &thread;
        switch_fiber(scheduler_, thread.fiber);
        current = nullptr;
        if (watching_turns) record_turn(thread);
    }

    void take_chosen_turn(unsigned choice) {
        std::vector<Thread*> able;
        for (Thread* thread : order_)
            if (can_run(*thread)) able.push_back(thread);
        if (!able.empty())
            take_turn(*able[choice % able.size()]);
        else
            land_one();
    }

    bool land_one() {
        if (copies_.empty()) return false;
        size_t which = 0;
        if (options().order == Order::reversed) which = copies_.size() - 1;
        if (options().order == Order::random) which = random() % copies_.size();
        const std::function<void()> land = std::move(copies_[which]);
        copies_.erase(copies_.begin() + which);
        land();
        return true;
    }

    void shuffle() {
        for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);
    }

    void report_deadlock() {
        std::map<std::tuple<std::string, std::string, int>, std::vector<const Thread*>> groups;
        for (const Thread* thread : order_)
            if (thread->state != Thread::done)
                groups[{thread->waits_for, thread->site.file, thread->site.line}].push_back(thread);
        std::string message = "no thread can go on:";
        const Thread* first = nullptr;
        for (const auto& [where, threads] : groups) {
            if (!first) first = threads[0];
            message += " " + std::to_string(threads.size()) +
                       (threads.size() == 1 ? " waits for " : " wait for ") + std::get<0>(where) +
                       " at line " + std::to_string(std::get<2>(where)) + " (" +
                       describe(*threads[0]) + (threads.size() == 1 ? ");" : ", ...);");
        }
        message.back() = '.';
        report("deadlock", first->site, message);
    }

    // A grid among those of its stream.
    struct Queued {
        const Grid* before = nullptr;
        size_t running = 0;  // threads
        Known known;         // of those that have ended
    };

    Fiber scheduler_;
    Stacks stacks_;
    std::map<const Grid*, Queued> queues_;
    std::vector<std::unique_ptr<Block>> blocks_;
    std::vector<Thread*> order_;
    std::vector<std::function<void()>> copies_;
    size_t alive_ = 0;
    uint64_t random_ = 0;
};

Machine& machine() {
    static thread_local Machine one;
    return one;
}

void Machine::begin_thread() {
    const Launch& launch = current->block->grid->launch;
    launch.entry(launch.arguments);
    machine().end_thread(*current);
}

}  // namespace

void run_together(const Unit& unit, uint64_t seed) {
    machine().run(unit, seed);
}

Thread* self() {
    return current;
}
uint3 thread_index() {
    return current->index;
}
uint3 block_index() {
    return current->block->index;
}
dim3 block_size() {
    return current->block->grid->launch.block;
}
dim3 grid_size() {
    return current->block->grid->launch.grid;
}
unsigned lane() {
    return current->lane();
}

bool on_a_stack(const void* address) {
    return machine().on_a_stack(address);
}

void wait(const char* what, Site site) {
    machine().give_way(Thread::waiting, what, site);
}
void wake(Thread& thread) {
    thread.state = Thread::ready;
}
void spin(const char* what, Site site) {
    machine().give_way(Thread::spinning, what, site);
}

void* shared_array(const void* key, const char* name, size_t bytes, size_t alignment, Site site) {
    Block& block = *self()->block;
    for (const SharedArray& array : block.arrays)
        if (array.key == key) return block.shared + array.offset;
    void* array = nullptr;
    for (Block* other : block.cluster) {  // at the same offset in all of them
        void* theirs = place(*other, key, name, bytes, alignment);
        if (other == &block) array = theirs;
    }
    if (!array) {
        report("shared memory", site,
               std::string("declares ") + name + ", " + std::to_string(bytes) + " bytes, after " +
                   std::to_string(block.shared_used) + " of " + std::to_string(kSharedBytes));
        for (;;) wait("shared memory that the machine does not have", site);
    }
    return array;
}

void* dynamic_shared() {
    return self()->block->shared;
}

void begin_copy(std::function<void()> land) {
    machine().begin_copy(std::move(land));
}

std::string text(uint3 index) {
    return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
           std::to_string(index.z) + ")";
}

std::string describe(const Thread& thread) {
    return "thread " + text(thread.index) + " of block " + text(thread.block->index);
}

}  // namespace simt
