//! A value that can be replaced while others use it: what a reload changes without cutting anybody off.

use std::sync::{Arc, RwLock};

/// One value for all its copies. Whoever reads it keeps what he got until he reads again.
#[derive(Debug, Default)]
pub struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    /// Begins as `value`.
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// As it is now.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().expect("no one panics holding it"))
    }

    /// Is `value` from here on, in every copy.
    pub fn set(&self, value: T) {
        *self.0.write().expect("no one panics holding it") = Arc::new(value);
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_changes_and_what_was_read_stays() {
        let value = Live::new(1);
        let copy = value.clone();
        let read = copy.get();
        value.set(2);
        assert_eq!((*read, *copy.get()), (1, 2));
    }
}
