//! Small dicts with short text keys, as most requests have them.

use std::mem::MaybeUninit;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::walk::ascii;

/// One item of a dict; borrowed from it until [`FewItems::keep`] is called.
struct Item {
    key: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    /// The text of the key, which lives as long as the key does.
    text: *const [u8],
}

/// The items of a small dict whose keys are all short exact ASCII text, in the
/// order of their encodings: sorting them before their values are written saves
/// moving the values' encodings (a third of the time of a 10 KB chat request).
///
/// References are only taken when a value is met that may run Python code,
/// which may change the dict.
pub(super) struct FewItems {
    /// As the dict has them: to move what was just written, as a sort would, or to
    /// return it, stalls the processor (a tenth of the time of that request).
    items: [MaybeUninit<Item>; Self::MOST],
    /// The places of the items, sorted.
    order: [u8; Self::MOST],
    len: usize,
    next: usize,
    /// Those from here on, in the order, are owned.
    kept: usize,
}

impl FewItems {
    const MOST: usize = 8;

    /// Room for them.
    #[inline]
    pub(super) fn new() -> Self {
        let items = [const { MaybeUninit::uninit() }; Self::MOST];
        Self { items, order: [0; Self::MOST], len: 0, next: 0, kept: Self::MOST }
    }

    /// Takes the items of `dict`; false if they are not few, or their keys are not short text.
    #[inline]
    pub(super) fn take(&mut self, dict: &Bound<'_, PyDict>) -> bool {
        let len = dict.len();
        if len > Self::MOST {
            return false;
        }
        let mut position: ffi::Py_ssize_t = 0;
        let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: attached; nothing in the loop runs Python code, so the dict stays as it is and
        // the borrowed pairs alive.
        unsafe {
            while self.len < len
                && ffi::PyDict_Next(dict.as_ptr(), &raw mut position, &raw mut key, &raw mut value)
                    != 0
            {
                let Some(text) = ascii(key).filter(|text| text.len() < 128) else { return false };
                let mut place = self.len;
                while place > 0 {
                    let other = &*self.item(self.order[place - 1]).text;
                    // As the encodings compare: the length comes first.
                    if (other.len(), other) < (text.len(), text) {
                        break;
                    }
                    self.order[place] = self.order[place - 1];
                    place -= 1;
                }
                self.order[place] = self.len as u8;
                self.items[self.len].write(Item { key, value, text });
                self.len += 1;
            }
        }
        true
    }

    /// # Safety
    /// `place` is below `len`.
    #[inline]
    unsafe fn item(&self, place: u8) -> &Item {
        // SAFETY: `take` has written those.
        unsafe { self.items[usize::from(place)].assume_init_ref() }
    }

    /// How many there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The text of the next key and its value, to be used before any Python code runs.
    #[inline]
    pub(super) fn next(&mut self) -> Option<(&[u8], *mut ffi::PyObject)> {
        if self.next == self.len {
            return None;
        }
        // SAFETY: below `len`; the key is alive: nothing ran since `take`, or it is owned.
        unsafe {
            let item = self.item(self.order[self.next]);
            let (text, value) = (&*item.text, item.value);
            self.next += 1;
            Some((text, value))
        }
    }

    /// The key and value that [`next`](Self::next) gave last. From now on these and the items to
    /// come stay, whatever happens to the dict.
    ///
    /// # Safety
    /// Attached; `next` has given an item, and no Python code ran between `take` and the
    /// first call of this.
    pub(super) unsafe fn keep<'py>(
        &mut self,
        py: Python<'py>,
    ) -> (Bound<'py, PyAny>, Bound<'py, PyAny>) {
        let last = self.next - 1;
        // SAFETY: below `len`, and alive because nothing ran, or because they are owned.
        unsafe {
            if self.kept > last {
                for place in &self.order[last..self.len] {
                    let item = self.item(*place);
                    ffi::Py_INCREF(item.key);
                    ffi::Py_INCREF(item.value);
                }
                self.kept = last;
            }
            let item = self.item(self.order[last]);
            (Bound::from_borrowed_ptr(py, item.key), Bound::from_borrowed_ptr(py, item.value))
        }
    }
}

impl Drop for FewItems {
    #[inline]
    fn drop(&mut self) {
        for place in self.order[..self.len].iter().skip(self.kept) {
            // SAFETY: attached as long as a walk lasts; these are owned.
            unsafe {
                let item = self.item(*place);
                ffi::Py_DECREF(item.key);
                ffi::Py_DECREF(item.value);
            }
        }
    }
}
