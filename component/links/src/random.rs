//! Random slugs, salts and names of requests.

use std::cell::RefCell;

use links_core::request_id::RequestId;
use links_core::secret::SALT_LENGTH;
use links_core::slug::Slug;
use rand::rngs::{StdRng, SysError, SysRng};
use rand::{Rng, SeedableRng};

thread_local! {
    /// Seeded by the host once an instance, when it first needs one: instances never share a seed.
    static GENERATOR: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// A slug for the given attempt, or `None` if it came out as a word that is reserved.
pub fn slug(attempt: usize) -> Result<Option<Slug>, SysError> {
    with_generator(|generator| Slug::generate(generator, attempt))
}

/// A salt for a digest.
pub fn salt() -> Result<[u8; SALT_LENGTH], SysError> {
    with_generator(|generator| {
        let mut salt = [0; SALT_LENGTH];
        generator.fill_bytes(&mut salt);
        salt
    })
}

/// For a request that nginx has given no name.
pub fn request_id() -> Result<RequestId, SysError> {
    with_generator(|generator| {
        let mut bytes = [0; 16];
        generator.fill_bytes(&mut bytes);
        RequestId::new(bytes)
    })
}

fn with_generator<T>(work: impl FnOnce(&mut StdRng) -> T) -> Result<T, SysError> {
    GENERATOR.with_borrow_mut(|kept| {
        let generator = match kept {
            Some(generator) => generator,
            None => kept.insert(StdRng::try_from_rng(&mut SysRng)?),
        };
        Ok(work(generator))
    })
}
