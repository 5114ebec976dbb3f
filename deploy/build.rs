//! Tells the program from which revision it is built, for `causeway --version`.
//!
//! Guarantees: the revision and the date of its commit come from the first of these sources that has both:
//! 1. the variables SOURCE_REVISION and SOURCE_DATE (`deploy/release` and `deploy/Dockerfile` set them),
//! 2. `deploy/revision.txt`, which git fills in when it makes an archive,
//! 3. git, for a release build. A debug build does not ask git, because each commit would compile the crate again.
//!
//! A build without a source does not fail. Its version says that the revision is not known.

use std::path::Path;
use std::process::Command;

const ARCHIVED: &str = "deploy/revision.txt";
const LENGTH: usize = 12;

fn main() {
    for variable in ["SOURCE_REVISION", "SOURCE_DATE"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=deploy/build.rs");
    println!("cargo::rerun-if-changed={ARCHIVED}");
    let known = of_variables().or_else(of_archive).or_else(|| {
        // Each commit changes the log of HEAD. The sources are listed for the mark of a changed tree. A path that is
        // missing would run this script at each build.
        let commits = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|_| is_release())?;
        for path in [commits.as_str(), "src", "Cargo.toml", "Cargo.lock"]
            .iter()
            .filter(|path| Path::new(path).exists())
        {
            println!("cargo::rerun-if-changed={path}");
        }
        of_git()
    });
    // cargo gives the variable to the programs that it runs, too. Causeway reads each variable CAUSEWAY_… as a setting, so the
    // name has another beginning.
    println!("cargo::rustc-env=BUILD_REVISION={}", known.unwrap_or_else(|| "unknown revision".to_owned()));
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name)?.into_string().ok().filter(|value| !value.is_empty())
}

fn is_release() -> bool {
    variable("PROFILE").as_deref() == Some("release")
}

fn of_variables() -> Option<String> {
    said(&variable("SOURCE_REVISION")?, &variable("SOURCE_DATE")?)
}

/// The file holds `$Format:%H %cI %ct$` in a checkout and the values in an archive.
fn of_archive() -> Option<String> {
    let text = std::fs::read_to_string(ARCHIVED).ok()?;
    let (revision, date) = text.trim().split_once(' ')?;
    said(revision, date)
}

fn of_git() -> Option<String> {
    // An archive that was unpacked inside another repository is not part of that repository.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = std::env::current_dir().ok()?;
    if Path::new(&top).canonicalize().ok()? != here.canonicalize().ok()? {
        return None;
    }
    let revision = said(&git(&["rev-parse", "HEAD"])?, &git(&["show", "-s", "--format=%cI", "HEAD"])?)?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if changed { format!("{revision}, changed") } else { revision })
}

/// A revision and a date, if they are that.
fn said(revision: &str, date: &str) -> Option<String> {
    let date = date.get(..10)?;
    let is_date = date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let is_revision = revision.len() >= 7 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_date && is_revision).then(|| format!("{} {date}", revision.get(..LENGTH).unwrap_or(revision)))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
