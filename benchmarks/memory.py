"""Memory of this process as the kernel counts it."""


def status(field: str) -> float:
    """Return megabytes of this process: `VmRSS` is the current memory, `VmHWM` its peak."""
    # Not ru_maxrss, which starts with the parent's value in a child process.
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"the kernel does not report {field}")
