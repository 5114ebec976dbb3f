//! Measures processor time and memory of a whole process tree, from /proc.
//!
//! Guarantees: the time of ended children counts for their parent. Linux only.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Linux reports processor time in hundredths of a second, independent of the kernel's own tick.
const TICKS: f64 = 100.0;

/// The resources that a process tree has used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Seconds of processor time so far.
    pub(crate) cpu: f64,
    /// Resident megabytes now. Memory that several processes share counts once.
    pub(crate) megabytes: f64,
}

#[derive(Debug)]
struct Process {
    parent: u32,
    ticks: u64,
}

/// The resources of these processes and all their descendants.
pub(crate) fn usage(roots: &[u32]) -> Usage {
    let all = processes();
    let members: Vec<u32> = all.keys().copied().filter(|pid| below(*pid, roots, &all)).collect();
    let ticks: u64 = members.iter().filter_map(|pid| all.get(pid)).map(|process| process.ticks).sum();
    let megabytes = match members.as_slice() {
        [one] => kilobytes(&format!("/proc/{one}/status"), "VmRSS:"),
        several => several.iter().map(|pid| kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum(),
    };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Usage { cpu: ticks as f64 / TICKS, megabytes: megabytes / 1024.0 }
}

fn below(pid: u32, roots: &[u32], all: &BTreeMap<u32, Process>) -> bool {
    let mut pid = pid;
    loop {
        if roots.contains(&pid) {
            return true;
        }
        match all.get(&pid) {
            Some(process) if process.parent > 1 => pid = process.parent,
            _ => return false,
        }
    }
}

fn processes() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, read(pid)?))).collect()
}

/// Fields 4 and 14 to 17 of /proc/PID/stat: the parent, and the times of the process and of its ended children.
fn read(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = (11..15).filter_map(number).sum();
    Some(Process { parent: u32::try_from(number(1)?).ok()?, ticks })
}

fn kilobytes(file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// Seconds of processor time of the whole machine so far, without idling and waiting for disks.
pub(crate) fn machine() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index));
    busy.sum::<f64>() / TICKS
}

/// The process that listens on this port of loopback.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let inodes: Vec<u64> =
        ["/proc/net/tcp", "/proc/net/tcp6"].iter().filter_map(|file| inode(file, port)).collect();
    let entries = fs::read_dir("/proc").ok()?.flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::metadata(file.path()).ok()).any(|file| inodes.contains(&file.ino()))
    })
}

fn inode(file: &str, port: u16) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let suffix = format!(":{port:04X}");
    text.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A") && fields.get(1)?.ends_with(&suffix);
        listens.then(|| fields.get(9)?.parse().ok()).flatten()
    })
}
