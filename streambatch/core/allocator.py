"""A setting of the C library's allocator that makes reading in blocks fast. It affects the process as a whole."""

FREED_BYTES = 4 << 20


def keep_freed_memory() -> None:
    """Make the allocator keep the memory of a few blocks when they are freed."""
    # glibc's malloc gives memory back to the system at once, until it has seen something larger freed; the page faults
    # of every block that is read then cost three times what reading it does. It keeps up to twice what it has seen.
    large = bytes(FREED_BYTES)
    del large
