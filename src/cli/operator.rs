//! The person at the command line, for the audit log.
//!
//! Guarantees: the user comes from the operating system, not from a variable that the user can set.

use std::io::IsTerminal as _;

use crate::telemetry::Operator;

/// The user and the terminal of this process.
pub(super) fn here() -> Operator {
    let uid = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&users, uid).map_or_else(|| format!("uid {uid}"), str::to_owned);
    Operator { name, from: terminal().unwrap_or_else(|| "no terminal".to_owned()) }
}

/// The name of a user in the format of `/etc/passwd`.
fn name_of(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

fn terminal() -> Option<String> {
    let streams = [
        (0, std::io::stdin().is_terminal()),
        (1, std::io::stdout().is_terminal()),
        (2, std::io::stderr().is_terminal()),
    ];
    let (number, _) = streams.into_iter().find(|(_, is_terminal)| *is_terminal)?;
    let name = std::fs::read_link(format!("/proc/self/fd/{number}"));
    Some(name.map_or_else(|_| "a terminal".to_owned(), |name| name.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_number() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(
            (name_of(users, 1000), name_of(users, 0), name_of(users, 7)),
            (Some("ada"), Some("root"), None)
        );
        assert!(!here().name.is_empty());
    }
}
