//! Random numbers.

use std::cell::RefCell;

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng};

use crate::log;

thread_local! {
    /// This instance's generator, seeded by the runtime at its first use. Instances never share a seed.
    static GENERATOR: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Runs `work` with this instance's generator. `None` if the runtime provides no seed, which is logged.
pub fn with_generator<T>(work: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
    GENERATOR.with_borrow_mut(|kept| {
        let generator = match kept {
            Some(generator) => generator,
            None => match StdRng::try_from_rng(&mut SysRng) {
                Ok(generator) => kept.insert(generator),
                Err(error) => {
                    log::line("the runtime provides no random numbers", error);
                    return None;
                }
            },
        };
        Some(work(generator))
    })
}

/// Random bytes. `None` in the same case as for [`with_generator`].
pub fn bytes<const N: usize>() -> Option<[u8; N]> {
    with_generator(|generator| {
        let mut bytes = [0; N];
        generator.fill_bytes(&mut bytes);
        bytes
    })
}
