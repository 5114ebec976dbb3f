//! How far the scanners of this folder walk, counted in tests, so that linear time is a number and not a stopwatch.
//!
//! Guarantees: every loop over a text goes through [`walked`], or through [`Search`], which counts by itself.

#[cfg(test)]
thread_local! {
    static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Notes that `bytes` of a text were looked at.
#[inline]
pub(super) fn walked(bytes: usize) {
    #[cfg(test)]
    STEPS.with(|steps| steps.set(steps.get() + bytes + 1));
    #[cfg(not(test))]
    let _ = bytes;
}

/// How many bytes `work` looked at.
#[cfg(test)]
pub(super) fn counted(work: impl FnOnce()) -> usize {
    STEPS.with(|steps| steps.set(0));
    work();
    STEPS.with(std::cell::Cell::get)
}

/// A search for one needle that remembers what it found: asked from growing positions, it looks at each byte once.
#[derive(Debug)]
pub(super) struct Search<'a> {
    text: &'a str,
    needle: &'static str,
    /// From where it was searched last, and what was found from there.
    last: Option<(usize, Option<usize>)>,
}

impl<'a> Search<'a> {
    pub(super) const fn new(text: &'a str, needle: &'static str) -> Self {
        Self { text, needle, last: None }
    }

    /// The first needle at or behind `from`.
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
