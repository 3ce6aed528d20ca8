//! Strings that are kept once and then handled by number.

use foldhash::HashMap;

/// Interned strings, numbered in the order in which they first came.
#[derive(Debug, Default)]
pub struct Names {
    numbers: HashMap<Box<[u8]>, u32>,
    names: Vec<Box<[u8]>>,
}

impl Names {
    /// The number of a name. A new name gets the next number.
    pub fn number(&mut self, name: &[u8]) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.count();
        self.numbers.insert(name.into(), number);
        self.names.push(name.into());
        number
    }

    pub fn bytes(&self, number: u32) -> &[u8] {
        self.names.get(number as usize).map_or(&[], |name| name)
    }

    /// The name as a string. Names are slugs, hosts and codes, which are ASCII.
    pub fn name(&self, number: u32) -> String {
        String::from_utf8_lossy(self.bytes(number)).into_owned()
    }

    /// The number of names. A batch has room for far fewer than 2^32.
    pub fn count(&self) -> u32 {
        self.names.len() as u32
    }

    pub fn clear(&mut self) {
        self.numbers.clear();
        self.names.clear();
    }
}
