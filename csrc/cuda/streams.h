// Grids that wait for each other must run at once: each on a stream of its own, all of which begin
// after what the caller's stream holds, and are waited for by what comes to it next.
//
//     {
//         const SideBySide streams(stream, count);
//         for (int i = 0; i < count; ++i) launch(kernel, grid, block, 0, streams[i], ...);
//     }

#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "../simt/simt.h"

namespace minitorch {

class SideBySide {
public:
    SideBySide(cudaStream_t stream, int count) : stream_(stream) {
        if (count == 1) return;  // the caller's own
        lanes_ = lanes_of_device(count);
        cudaEvent_t begin = lanes_[0].event;
        (void)cudaEventRecord(begin, stream);
        for (const Lane& lane : lanes_) (void)cudaStreamWaitEvent(lane.stream, begin, 0);
    }
    ~SideBySide() {
        for (const Lane& lane : lanes_) {
            (void)cudaEventRecord(lane.event, lane.stream);
            (void)cudaStreamWaitEvent(stream_, lane.event, 0);
        }
    }
    cudaStream_t operator[](int i) const { return lanes_.empty() ? stream_ : lanes_[i].stream; }

private:
    struct Lane {
        cudaStream_t stream;
        cudaEvent_t event;
    };

    // Made once for each device, and kept.
    static std::vector<Lane> lanes_of_device(size_t count) {
        static std::map<int, std::vector<Lane>> all;
        static std::mutex guard;
        const std::lock_guard lock(guard);
        int device = 0;
        (void)cudaGetDevice(&device);
        std::vector<Lane>& lanes = all[device];
        while (lanes.size() < count) {
            Lane& lane = lanes.emplace_back();
            (void)cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking);
            (void)cudaEventCreateWithFlags(&lane.event, cudaEventDisableTiming);
        }
        return {lanes.begin(), lanes.begin() + long(count)};
    }

    cudaStream_t stream_;
    std::vector<Lane> lanes_;
    const Together together_;  // in the emulator, where there are no streams
};

}  // namespace minitorch
