//! Counts the steps of the scanners in tests, so that a test can check linear time without a clock.
//!
//! Guarantees: every loop over a text calls [`walked`], or uses [`TextSearch`], which counts by itself.

#[cfg(test)]
thread_local! {
    static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Records that `bytes` of a text were read.
#[inline]
pub(super) fn walked(bytes: usize) {
    #[cfg(test)]
    STEPS.with(|steps| steps.set(steps.get() + bytes + 1));
    #[cfg(not(test))]
    let _ = bytes;
}

/// The number of bytes that `work` read.
#[cfg(test)]
pub(super) fn counted(work: impl FnOnce()) -> usize {
    STEPS.with(|steps| steps.set(0));
    work();
    STEPS.with(std::cell::Cell::get)
}

/// A search for one needle that remembers its result: for growing positions, each byte is read once.
#[derive(Debug)]
pub(super) struct TextSearch<'a> {
    text: &'a str,
    needle: &'static str,
    /// The position of the last search, and its result.
    last: Option<(usize, Option<usize>)>,
}

impl<'a> TextSearch<'a> {
    pub(super) const fn new(text: &'a str, needle: &'static str) -> Self {
        Self { text, needle, last: None }
    }

    /// The first needle at `from` or later.
    pub(super) fn next(&mut self, from: usize) -> Option<usize> {
        if let Some((asked, found)) = self.last
            && from >= asked
            && found.is_none_or(|found| found >= from)
        {
            return found;
        }
        let found = self.text.get(from..).and_then(|rest| rest.find(self.needle)).map(|at| from + at);
        walked(found.unwrap_or(self.text.len()).saturating_sub(from));
        self.last = Some((from, found));
        found
    }
}
