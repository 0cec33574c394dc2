#include "machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include "findings.h"
#include "runtime.h"
#include "traffic.h"
#include "turns.h"

namespace simt {
namespace {

using Unit = std::vector<std::pair<const Grid*, uint3>>;  // blocks that are on the machine at once

thread_local Thread* current = nullptr;
std::atomic<uint32_t> next_block{1};

void release_if_complete(Barrier& barrier, Block& block);

uint3 index_of(unsigned rank, dim3 size) {
    return {rank % size.x, rank / size.x % size.y, rank / (size.x * size.y)};
}

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

// The blocks of a grid in the groups that are on the machine together.
void add_units(const Grid& grid, std::vector<Unit>& units) {
    const dim3 size = grid.launch.grid, cluster = grid.launch.cluster;
    const dim3 per{(size.x + cluster.x - 1) / cluster.x, (size.y + cluster.y - 1) / cluster.y,
                   (size.z + cluster.z - 1) / cluster.z};
    for (unsigned c = 0; c < per.size(); ++c) {
        const uint3 corner = index_of(c, per);
        Unit unit;
        for (unsigned b = 0; b < cluster.size(); ++b) {
            const uint3 inside = index_of(b, cluster);
            unit.push_back({&grid,
                            {corner.x * cluster.x + inside.x, corner.y * cluster.y + inside.y,
                             corner.z * cluster.z + inside.z}});
        }
        units.push_back(std::move(unit));
    }
}

cudaError_t execute(const std::vector<Grid>& grids) {
    check_launch();
    std::vector<Unit> units;
    for (const Grid& grid : grids) add_units(grid, units);
    if (grids.size() > 1 || grids[0].launch.cooperative) {
        Unit all;
        for (const Unit& unit : units) all.insert(all.end(), unit.begin(), unit.end());
        units = {all};
        size_t threads = 0;
        for (const Grid& grid : grids)
            threads += grid.launch.grid.size() * grid.launch.block.size();
        if (threads > Stacks::kMost) {
            std::fprintf(stderr, "simt: launch: at most %zu threads run at once, and %zu are to\n",
                         Stacks::kMost, threads);
            return remember_error(cudaErrorCooperativeLaunchTooLarge);
        }
    }
    if (options().order == Order::reversed) std::reverse(units.begin(), units.end());
    const std::vector<unsigned>& choices = options().choices;
    for (size_t i = 0; i < std::min(choices.size(), units.size()); ++i) {
        const auto chosen = units.begin() + i + choices[i] % (units.size() - i);
        std::rotate(units.begin() + i, chosen, chosen + 1);
    }
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i; (i = next++) < units.size();) machine().run(units[i], options().seed + i);
    };
    size_t processors =
        options().processors ? options().processors : std::thread::hardware_concurrency();
    if (checking || !processors) processors = 1;
    std::vector<std::jthread> helpers;
    for (size_t i = 1; i < std::min(processors, units.size()); ++i) helpers.emplace_back(work);
    work();
    helpers.clear();
    for (const Finding& finding : findings())
        if (finding.kind == "deadlock") return remember_error(cudaErrorLaunchFailure);
    return cudaSuccess;
}

thread_local std::vector<Grid>* together = nullptr;
thread_local int together_depth = 0;

// A barrier that waits for no more lets its threads go on.
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

}  // namespace

// SIMT_ORDER (forward, reversed, random), SIMT_SEED and SIMT_CHOICES ("3,0,5") of the environment,
// unless a program says otherwise.
Options& options() {
    static Options one = [] {
        Options from_environment;
        const char* order = std::getenv("SIMT_ORDER");
        if (order && !std::strcmp(order, "reversed")) from_environment.order = Order::reversed;
        if (order && !std::strcmp(order, "random")) from_environment.order = Order::random;
        if (const char* seed = std::getenv("SIMT_SEED"))
            from_environment.seed = std::strtoull(seed, nullptr, 10);
        if (const char* choices = std::getenv("SIMT_CHOICES"))
            for (char* end; *choices; choices = *end ? end + 1 : end)
                from_environment.choices.push_back(unsigned(std::strtoul(choices, &end, 10)));
        return from_environment;
    }();
    return one;
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

void report_absent_lane(unsigned lane, Site site) {
    report("wrong mask", site,
           "takes a value from lane " + std::to_string(lane) + ", which does not take part");
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

// Why a launch cannot be, or null.
static const char* trouble_with(const Launch& launch) {
    if (launch.block.size() == 0 || launch.block.size() > 1024)
        return "a block has 1 to 1024 threads";
    if (launch.grid.size() == 0) return "a grid has at least one block";
    if (launch.dynamic_bytes > kSharedBytes) return "a block has at most 227 KiB of shared memory";
    if (launch.grid.x % launch.cluster.x || launch.grid.y % launch.cluster.y ||
        launch.grid.z % launch.cluster.z)
        return "the clusters do not divide the grid";
    if (launch.cluster.size() > 8) return "a cluster has at most 8 blocks";
    return nullptr;
}

cudaError_t run(const Launch& launch) {
    const Grid grid{launch, {launch.arguments, launch.drop}};
    if (const char* trouble = trouble_with(launch)) {
        std::fprintf(stderr, "simt: launch: %s\n", trouble);
        return remember_error(cudaErrorInvalidValue);
    }
    if (!together) return execute({grid});
    together->push_back(grid);
    return cudaSuccess;
}

Together::Together() {
    if (together_depth++ == 0) together = new std::vector<Grid>;
}

Together::~Together() {
    if (--together_depth > 0) return;
    const std::unique_ptr<std::vector<Grid>> grids(std::exchange(together, nullptr));
    if (!grids->empty()) (void)execute(*grids);
}

std::string text(uint3 index) {
    return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
           std::to_string(index.z) + ")";
}

std::string describe(const Thread& thread) {
    return "thread " + text(thread.index) + " of block " + text(thread.block->index);
}

}  // namespace simt
