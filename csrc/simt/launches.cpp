// What becomes of a launch: which blocks are on the machine together, in what order, and what the
// host is told.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "findings.h"
#include "machine.h"
#include "runtime.h"

namespace simt {
namespace {

thread_local std::vector<Grid>* together = nullptr;
thread_local int together_depth = 0;

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
        for (size_t i; (i = next++) < units.size();) run_together(units[i], options().seed + i);
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

// Why a launch cannot be, or null.
const char* trouble_with(const Launch& launch) {
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

}  // namespace simt
