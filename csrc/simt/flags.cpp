#include "check.h"
#include "machine.h"

namespace simt {

void store_release(uint32_t* flag, uint32_t value, Site site) {
    if (checking) check_release(flag, site);
    __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

// Others run before the load, not between what is heard and what is read.
uint32_t load_acquire(const uint32_t* flag, Site site) {
    spin("a flag", site);
    if (checking) check_acquire(flag, site);
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

}  // namespace simt
