//! How many instances of components fit into the address space of this process.
//!
//! The pool reserves 4 GiB of addresses for each instance, so that compiled code needs no bounds checks. That is 4 TiB, which is
//! nothing on most machines. It is too much for some kernels (39-bit addresses on arm64: 512 GiB) and under RLIMIT_AS, which is
//! LimitAS= in a unit. The compiled code does not depend on the size of the pool.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Result, bail};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The maximum number of instances that exist at once, if the address space allows it. Spin's default.
pub const MAX_INSTANCES: u32 = 1_000;

const GIB: u64 = 1 << 30;
/// What the pool reserves for an instance: its memory, the guard behind it (32 MiB), its stack and its tables (together less
/// than 32 MiB).
const PER_INSTANCE: u64 = 4 * GIB + (64 << 20);
/// What stays free for all else: threads, SQLite, the allocator.
const HEADROOM: u64 = 16 * GIB;
/// Fewer instances could not handle a burst of requests.
const MIN_INSTANCES: u32 = 15;

/// The maximum number of instances, which the address space allows. At most [`MAX_INSTANCES`].
///
/// # Errors
/// There is too little for the smallest pool.
pub fn max_instances() -> Result<u32> {
    choose(|pool, rest| {
        let pool = Reservation::make(pool);
        pool.is_some() && Reservation::make(rest).is_some()
    })
}

/// Halves the pool until it and the rest are free at once.
fn choose(are_free: impl Fn(u64, u64) -> bool) -> Result<u32> {
    let sizes = std::iter::successors(Some(MAX_INSTANCES), |instances| Some(instances / 2));
    let mut sizes = sizes.take_while(|instances| *instances >= MIN_INSTANCES);
    match sizes.find(|instances| are_free(u64::from(*instances) * PER_INSTANCE, HEADROOM)) {
        Some(instances) => Ok(instances),
        None => bail!(
            "the address space of this process is limited to less than {} GiB; raise LimitAS= of the unit, or `ulimit -v`. It \
             limits addresses, not memory: MemoryMax= limits memory",
            (u64::from(MIN_INSTANCES) * PER_INSTANCE + HEADROOM).div_ceil(GIB)
        ),
    }
}

/// An inaccessible part of the address space. It uses no memory, and is free again when dropped.
struct Reservation {
    start: NonNull<c_void>,
    length: NonZeroUsize,
}

impl Reservation {
    fn make(bytes: u64) -> Option<Self> {
        let length = NonZeroUsize::new(usize::try_from(bytes).ok()?)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: The kernel chooses addresses that nothing uses, and nobody accesses them.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) };
        Some(Self {
            start: start.ok()?,
            length,
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: This is the whole mapping that `make` made, and it has no other user.
        let freed = unsafe { munmap(self.start, self.length.get()) };
        debug_assert_eq!(freed, Ok(()));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    /// The instances that fit into this many bytes, of which no gap is larger than `gap`.
    fn within(total: u64, gap: u64) -> Result<u32> {
        choose(|pool, rest| pool <= gap && pool + rest <= total)
    }

    #[test]
    fn the_pool_is_as_large_as_the_address_space_allows() {
        assert_eq!(within(1 << 47, 1 << 46).unwrap(), MAX_INSTANCES);
        // 42 bits, and 39 bits with the program at two thirds of them, as arm64 has it.
        assert_eq!(within(1 << 42, 1 << 41).unwrap(), 500);
        assert_eq!(within(1 << 39, (1 << 39) / 3 * 2).unwrap(), 62);
        // RLIMIT_AS limits the sum of all.
        assert_eq!(within(1 << 39, 1 << 46).unwrap(), 62);
        assert_eq!(within(80 * GIB, 80 * GIB).unwrap(), MIN_INSTANCES);
    }

    #[test]
    fn too_little_address_space_is_an_error_that_names_the_limit() {
        let error = within(8 * GIB, 8 * GIB).unwrap_err().to_string();
        assert!(error.contains("77 GiB") && error.contains("LimitAS="), "{error}");
        assert!(within(77 * GIB, 77 * GIB).is_ok() && within(76 * GIB, 76 * GIB).is_err());
    }

    #[test]
    fn a_reservation_succeeds_as_long_as_there_is_room() {
        let reservation = Reservation::make(GIB).unwrap();
        assert_eq!(u64::try_from(reservation.length.get()).unwrap(), GIB);
        assert!(Reservation::make(1 << 60).is_none());
    }
}
