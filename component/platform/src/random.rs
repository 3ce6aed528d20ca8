//! Random numbers.

use std::cell::RefCell;

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng};

use crate::log;

thread_local! {
    /// Seeded by the runtime when an instance first needs it: instances never share a seed.
    static GENERATOR: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Runs `work` with this instance's generator. `None`: the runtime gives no seed, which is logged.
pub fn with_generator<T>(work: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
    GENERATOR.with_borrow_mut(|kept| {
        let generator = match kept {
            Some(generator) => generator,
            None => match StdRng::try_from_rng(&mut SysRng) {
                Ok(generator) => kept.insert(generator),
                Err(error) => {
                    log::line("the runtime gives no random numbers", error);
                    return None;
                }
            },
        };
        Some(work(generator))
    })
}

/// Random bytes; `None` as for [`with_generator`].
pub fn bytes<const N: usize>() -> Option<[u8; N]> {
    with_generator(|generator| {
        let mut bytes = [0; N];
        generator.fill_bytes(&mut bytes);
        bytes
    })
}
