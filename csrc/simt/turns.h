// Whose turn it was: the order in which the fibers ran, for those who ask to see it.

#pragma once

namespace simt {

struct Thread;

extern bool watching_turns;
// A thread has run, and now waits or has ended.
void record_turn(const Thread& thread);

}  // namespace simt
