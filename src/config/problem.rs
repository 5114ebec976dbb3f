//! Problems of the settings. An operator sees all problems at once and can correct them together.
//!
//! Guarantees: every mistake is reported at once, with its key, its place and the action to take. A value is shown only if
//! its key is not secret.

use std::fmt;
use std::path::PathBuf;

/// The place of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingSource {
    /// Not written: it is the default, or missing.
    Nowhere,
    /// In a settings file.
    File {
        /// Its path.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// In an environment variable.
    Variable(String),
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("not set"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingProblem {
    /// The key of the value.
    pub key: String,
    /// The place of the value.
    pub place: SettingSource,
    /// The problem and the action to take.
    pub reason: String,
}

impl fmt::Display for SettingProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.key, self.place, self.reason)
    }
}

/// All mistakes. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingProblems(pub Vec<SettingProblem>);

impl fmt::Display for SettingProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the settings have a mistake:")?,
            many => write!(f, "the settings have {many} mistakes:")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for SettingProblems {}
