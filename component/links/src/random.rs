//! Random slugs.

use std::cell::RefCell;

use links_core::slug::Slug;
use rand::SeedableRng;
use rand::rngs::{StdRng, SysError, SysRng};

thread_local! {
    /// Seeded by the host once an instance, when it first needs one: instances never share a seed.
    static GENERATOR: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// A slug for the given attempt, or `None` if it came out as a word that is reserved.
pub fn slug(attempt: usize) -> Result<Option<Slug>, SysError> {
    GENERATOR.with_borrow_mut(|kept| {
        let generator = match kept {
            Some(generator) => generator,
            None => kept.insert(StdRng::try_from_rng(&mut SysRng)?),
        };
        Ok(Slug::generate(generator, attempt))
    })
}
