//! Describes the machine of the measurement.

use std::fs;

use super::broker::Broker;

/// One fact on each line.
pub(crate) async fn facts(broker: &Broker) -> anyhow::Result<Vec<String>> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or_else(|| "?".into(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kilobytes = field(&read("/proc/meminfo"), "MemTotal");
    let kilobytes: f64 = kilobytes.trim_end_matches(" kB").parse().unwrap_or(0.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    Ok(vec![
        format!(
            "{cores} × {}, {:.0} GB, Linux {}",
            field(&read("/proc/cpuinfo"), "model name"),
            kilobytes / 1e6,
            kernel.trim()
        ),
        broker.version().await?,
        format!("load average at the start: {}", read("/proc/loadavg").trim()),
    ])
}
