// cpus.h - how many CPUs this process may use; shared by the core and the library for C users

#ifndef SPARSEC_CPUS_H
#define SPARSEC_CPUS_H

// What the affinity mask and the cgroup's CPU quota leave, at least 1.
int usable_cpus(void);

#endif
